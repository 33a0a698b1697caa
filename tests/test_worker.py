"""The worker's loop in this process, and worker processes that are really started and killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fmnist import checkpoint
from fmnist.data import DataSet
from search import queue
from search.definition import PRUNERS, SAMPLERS, StudyDefinition
from search.engines import local
from search.storage import default_url, lock, open_storage
from search.study import checkpoint_path, open_study
from search.worker import Stop, WorkerSettings, work

Make = Callable[..., tuple[optuna.Study, WorkerSettings]]


def definition(**changes: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "defaults": {"architecture": "simple", "epochs": 2, "filters": 4, "learning_rate": 0.002},
            "space": {"filters": {"low": 2, "high": 4}, "learning_rate": {"choices": [0.001, 0.002, 0.005]}},
            **changes,
        }
    )


@pytest.fixture
def make(tmp_path: Path, tiny: DataSet, tiny_folder: Path) -> Make:
    def made(defined: StudyDefinition, trials: int) -> tuple[optuna.Study, WorkerSettings]:
        url = default_url(tmp_path)
        study = open_study(open_storage(url, "create"), "s", defined, tiny, tmp_path / "s")
        with lock(url):
            queue.top_up(study, defined, trials)
        return study, WorkerSettings(url, "s", tiny_folder, "cpu", threads=1)

    return made


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize(
    ("sampler", "pruner"), [(name, PRUNERS[i]) for i, name in enumerate(SAMPLERS)], ids=lambda name: str(name)
)
def test_every_sampler_and_pruner_drains_its_queue(make: Make, sampler: str, pruner: str) -> None:
    study, settings = make(definition(sampler=sampler, pruner=pruner), 9)
    work(settings, Stop())
    assert len(states(study)) == 9
    assert set(states(study)) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert study.trials[0].params == {"filters": 4, "learning_rate": 0.002}
    assert all(trial.user_attrs[queue.OWNER]["pid"] == os.getpid() for trial in study.trials)


def test_a_trial_that_raises_ends_failed_with_its_reason_and_the_next_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(pruner="none"), 3)
    real = checkpoint.save
    calls = iter([OSError("disk full")])

    def fails_once(*arguments: object) -> None:
        for error in calls:
            raise error
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("search.objective.checkpoint.save", fails_once)
    work(settings, Stop())
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert study.trials[0].user_attrs["reason"] == "OSError: disk full"


LONG = definition(
    pruner="none", defaults={"architecture": "simple", "epochs": 300, "filters": 4, "learning_rate": 0.002}
)


def test_workers_that_are_stopped_give_back_what_they_have_begun(make: Make, tmp_path: Path) -> None:
    study, settings = make(LONG, 2)
    begun = checkpoint_path(tmp_path / "s", 0)
    local.drain(study, [settings], begun.exists, lambda: None)
    assert states(study) == [TrialState.WAITING] * 2
    reported = study.trials[0].intermediate_values
    assert [metrics.accuracy for metrics in checkpoint.load(begun).history] == list(reported.values())


def test_a_killed_worker_is_replaced_and_its_trial_goes_on(make: Make, tmp_path: Path) -> None:
    study, settings = make(LONG, 1)
    path = checkpoint_path(tmp_path / "s", 0)
    owners: list[int] = []
    history: list[object] = []

    def kill_the_first() -> None:
        owner = study.get_trials()[0].user_attrs.get(queue.OWNER)
        if owner and owner["pid"] not in owners and path.exists():
            owners.append(owner["pid"])
            if len(owners) == 1:
                os.kill(owner["pid"], signal.SIGKILL)
                history.extend(checkpoint.load(path).history)

    def went_on() -> bool:
        return len(owners) == 2 and len(checkpoint.load(path).history) > len(history)

    local.drain(study, [settings], went_on, kill_the_first)
    assert len(owners) == 2
    assert checkpoint.load(path).history[: len(history)] == history
    assert states(study) == [TrialState.WAITING]


def test_workers_end_though_the_database_is_gone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(LONG, 3)
    pids: set[int] = set()

    def lose_the_database() -> None:
        pids.update(trial.user_attrs[queue.OWNER]["pid"] for trial in queue.running(study))
        if len(pids) == 2:
            monkeypatch.setattr(queue, "release", lambda *_, **__: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        local.drain(study, [settings] * 2, lambda: False, lose_the_database)
    assert len(pids) == 2
    assert not any(map(queue._alive, pids))


def test_worker_processes_that_crash_again_and_again_end_the_search(make: Make) -> None:
    study, settings = make(definition(), 2)
    broken = WorkerSettings(settings.storage, "no such study", settings.data_dir, "cpu", threads=1)
    with pytest.raises(local.WorkersDied, match="4 worker processes have crashed"):
        local.drain(study, [broken], lambda: False, lambda: None)
    assert states(study) == [TrialState.WAITING] * 2


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 8)
    for workers, threads in ((3, 2), (8, 1), (16, 1)):
        settings = local.settings_for("sqlite:///x", "s", None, "cpu", workers)
        assert [each.threads for each in settings] == [threads] * workers
