"""Complete searches that pause trials, on both databases: exact, bit-exact, and independent of interruptions."""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from fmnist.data import DataSet
from search.artifacts import Folder
from search.database.connection import lock, open_storage
from search.queue import freezing, tickets
from search.queue.lease import PAUSE
from search.results.summary import summarize
from search.study.record import AUDIT, PAUSED, RecordError, checkpoint_of, history_of
from search.study.store import definition_of, finalists_of, load_study
from search.worker.loop import work
from search.worker.reproduce import reproduce
from search.worker.retention import drop_orphans, drop_outperformed
from tests.children import never
from tests.conftest import Command, Make, worker_pids
from tests.factories import FREEZING, definition
from tests.processes import Process
from tests.test_faults import (
    CHAOS,
    FINISHED,
    ON_POSTGRESQL,
    ON_SQLITE,
    attempts_of,
    reports,
    search,
    states,
    the_study,
    trials_of,
    wait_for,
)

__all__ = ["search"]  # a fixture

WAITING, RUNNING, COMPLETE, PRUNED = TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED

FREEZE = CHAOS.replace('pruner = "none"', 'pruner = "freeze"').replace("0.0005", "0.0003")


def assert_ended(study: optuna.Study, trials: int) -> None:
    """Check that `trials` trials finished, nothing is left over, and no trial had two attempts at the same time."""
    found = states(study)
    assert found[COMPLETE] + found[PRUNED] == trials == sum(found.values()) - found[TrialState.FAIL]
    assert found[COMPLETE] > 0
    for trial in trials_of(study):
        assert PAUSED not in trial.user_attrs
        outcomes = [str(attempt["outcome"]) for attempt in attempts_of(trial)]
        assert not {"complete", "pruned"} & set(outcomes[:-1])
        if trial.state in FINISHED:  # a trial killed three times at the same step is not
            pruned = "pruned" if AUDIT in trial.user_attrs else PAUSE
            assert outcomes[-1] == ("complete" if trial.state == COMPLETE else pruned)
            assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]
        for one, next_one in pairwise(attempts_of(trial)):
            assert at(one["ended"]) <= at(next_one["started"])
    assert summarize(study).trials.left == 0


def at(timestamp: object) -> datetime:
    return datetime.fromisoformat(str(timestamp))


def assert_bit_exact(study: optuna.Study, data: DataSet) -> None:
    """Check that each finished trial equals its uninterrupted training run."""
    for trial in trials_of(study):
        if trial.state in FINISHED:
            reproduction = reproduce(study, trial.number, data, lambda _: None)
            assert (reproduction.same_metrics, reproduction.same_weights) == (True, True), trial.number


def outcomes(study: optuna.Study) -> list[tuple[Any, ...]]:
    """The results of a search, without times and attempts."""
    return [(trial.state, trial.params, trial.value, trial.intermediate_values) for trial in trials_of(study)]


def test_a_repeatedly_stopped_search_reaches_the_same_results(
    make: Make, url: str, tmp_path: Path, tiny: DataSet
) -> None:
    whole, settings = make(FREEZING, 9, f"sqlite:///{tmp_path / 'whole.db'}", folder=tmp_path / "whole")
    work(settings, never)
    assert_ended(whole, 9)
    assert states(whole)[PRUNED] > 3
    study, settings = make(FREEZING, 9, url)
    stops = 0
    while not tickets.is_done(study):
        before = reports(study) + 1 + stops % 3
        work(settings, lambda before=before: reports(study) >= before)  # type: ignore[misc]
        assert states(study)[RUNNING] == 0
        counted = summarize(study).trials
        assert counted.finished + counted.paused + counted.waiting == 9
        assert counted.paused == sum(PAUSED in trial.user_attrs for trial in trials_of(study))
        stops += 1
    assert stops > 8
    assert outcomes(study) == outcomes(whole)
    assert_ended(study, 9)
    assert_bit_exact(study, tiny)


def until_paused(study: optuna.Study, count: int) -> Callable[[], bool]:
    return lambda: freezing.paused(study) >= count


def test_checkpoints_of_paused_trials_are_kept_until_they_end(make: Make, url: str, tmp_path: Path) -> None:
    study, settings = make(FREEZING, 10, url)
    work(settings, until_paused(study, 4))
    waiting = [trial for trial in trials_of(study) if PAUSED in trial.user_attrs]
    folder = Folder(tmp_path / "s" / "checkpoints")
    drop_outperformed(study, folder, 1)
    assert drop_orphans(study, folder) == 0
    assert {checkpoint_of(trial) for trial in waiting} <= set(folder.names())
    work(settings, never)
    assert_ended(study, 10)
    kept = {name for trial in trials_of(study) if (name := checkpoint_of(trial))}
    assert {name for name in folder.names() if name.endswith(".pt")} == kept
    assert all(trial.state == COMPLETE for trial in trials_of(study) if checkpoint_of(trial))


@pytest.mark.parametrize("sampler", ["tpe", "grid", "qmc"])
def test_each_sampler_completes_its_search(make: Make, sampler: str) -> None:
    grid = {"space": {"learning_rate": {"choices": [1e-4, 5e-4, 0.002, 0.005]}, "epochs": {"low": 2, "high": 3}}}
    study, settings = make(
        definition(**(FREEZING.model_dump() | {"sampler": sampler} | (grid if sampler == "grid" else {}))), 8
    )
    work(settings, never)
    assert_ended(study, 8)
    if sampler == "grid":
        assert len({str(trial.params) for trial in trials_of(study)}) == 8


def test_audited_trials_are_trained_to_the_end(make: Make, url: str) -> None:
    study, settings = make(definition(**(FREEZING.model_dump() | {"audit": 0.5})), 10, url)
    work(settings, never)
    chosen = [trial for trial in trials_of(study) if freezing.is_audited(definition_of(study), trial.number)]
    assert 0 < len(chosen) < 10
    for trial in trials_of(study):
        audited = AUDIT in trial.user_attrs
        assert audited == (trial in chosen and trial.state == PRUNED)
        if trial.state == COMPLETE or audited:
            assert history_of(trial)[-1].epoch == trial.params["epochs"]
        if audited:
            assert trial.user_attrs[AUDIT]["accuracy"] == history_of(trial)[-1].accuracy
            assert max(trial.intermediate_values) == 100 * trial.user_attrs[AUDIT]["since"]
    assert any(AUDIT in trial.user_attrs for trial in trials_of(study))


def test_a_finished_search_can_be_extended(make: Make) -> None:
    study, settings = make(FREEZING, 6)
    work(settings, never)
    before = outcomes(study)
    with lock(settings.storage):
        tickets.top_up(study, FREEZING, 9)
    work(settings, never)
    assert outcomes(study)[:6] == before
    assert len({str(trial.params) for trial in trials_of(study)}) == 9
    assert_ended(study, 9)


def test_an_altered_record_ends_the_worker_with_one_line_and_fails_no_trial(make: Make) -> None:
    study, settings = make(FREEZING, 8)

    def alter() -> bool:
        trial = next((trial for trial in trials_of(study) if PAUSED in trial.user_attrs), None)
        if trial and isinstance(trial.user_attrs[PAUSED], dict):
            study._storage.set_trial_user_attr(trial._trial_id, PAUSED, "by hand")
        return False

    for _ in range(4):
        with pytest.raises(RecordError, match=r"trial \d: another program changed its user attribute .paused."):
            work(settings, alter)
    assert TrialState.FAIL not in states(study)
    assert states(study)[RUNNING] == 0


@ON_SQLITE
@pytest.mark.parametrize(
    ("how", "expected"),
    [("Ctrl-C", "Stopping after the running epochs"), ("stop", "Stopped by `fmnist-search stop`: ")],
)
def test_a_stopped_search_leaves_paused_trials_that_the_next_run_ends(
    url: str, search: Callable[..., Process], command: Command, how: str, expected: str
) -> None:
    process = search(url, FREEZE, "--trials", "12", "--workers", "2")
    study = the_study(url, process)
    wait_for(until_paused(study, 3), process)
    if how == "stop":
        assert command("stop", "chaos", "--storage", url).returncode == 0
    else:
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert expected in output
    found = states(study)
    assert found[RUNNING] == 0
    assert freezing.paused(study) >= 3
    status = command("status", "chaos", "--storage", url)
    assert f"{freezing.paused(study)} paused" in status.stdout
    output, errors = search(url, FREEZE, "--trials", "12", "--workers", "2").communicate()
    assert (errors, "Done: 12 trials" in output) == ("", True)
    assert_ended(load_study(open_storage(url), "chaos"), 12)


@ON_POSTGRESQL
def test_a_timeout_leaves_trials_paused(url: str, search: Callable[..., Process]) -> None:
    endless = (
        FREEZE.replace("high = 6", "high = 600").replace("low = 3", "low = 500").replace("epochs = 5", "epochs = 500")
    )
    process = search(url, endless, "--trials", "5", "--workers", "2", "--timeout", "6")
    study = the_study(url, process)
    wait_for(until_paused(study, 1), process)
    output, errors = process.communicate()
    assert errors == ""
    counted = summarize(study).trials
    assert f"Time is up: 0 of 5 trials are finished and {counted.paused} are paused; run the same command" in output
    assert (counted.running, counted.paused + counted.waiting) == (0, 5)
    assert counted.paused >= 1
    assert {kind_of(attempt) for trial in trials_of(study) for attempt in attempts_of(trial)} <= {PAUSE, "given back"}


@ON_POSTGRESQL
def test_finalists_of_a_search_with_paused_trials_are_trained_to_the_end(
    url: str, search: Callable[..., Process]
) -> None:
    output, errors = search(url, FREEZE, "--trials", "6", "--workers", "2", "--finalists", "1").communicate()
    assert errors == ""
    assert "Winner: trial" in output
    study = load_study(open_storage(url), "chaos")
    assert_ended(study, 6)
    finalists = finalists_of(study)
    assert finalists
    assert definition_of(finalists).pruner == "none"
    assert set(states(finalists)) == {COMPLETE}


@pytest.mark.timeout(3600)
def test_chaos(
    url: str, search: Callable[..., Process], tmp_path: Path, tiny: DataSet, pytestconfig: pytest.Config
) -> None:
    """Workers and the command are killed at random moments of a search with paused trials."""
    kills: int = pytestconfig.getoption("--kills")
    trials = 3 * kills
    chance = random.Random(7)
    arguments = (url, FREEZE, "--trials", str(trials), "--workers", "3", "--keep", str(trials))
    process = search(*arguments)
    study = the_study(url, process)
    made: Counter[str] = Counter()
    with_paused = 0

    def workers() -> list[int]:
        return worker_pids(process.pid)

    for number in range(kills):
        goal = reports(study) + 1 + chance.randrange(2)
        wait_for(lambda goal=goal: reports(study) >= goal and workers(), process)  # type: ignore[misc]
        kind = ("kill one", "kill all", "kill run")[number % 3]
        made[kind] += 1
        with_paused += freezing.paused(study) > 0
        if kind == "kill run":
            process.kill()
            process.wait()
            process = search(*arguments)
        for pid in {"kill one": workers()[:1], "kill all": workers()}.get(kind, []):
            os.kill(pid, signal.SIGKILL)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"Done: {trials} trials" in output
    study = load_study(open_storage(url), "chaos")
    assert_ended(study, trials)
    assert_bit_exact(study, tiny)
    assert with_paused >= kills // 2
    ends = Counter(kind_of(attempt) for trial in trials_of(study) for attempt in attempts_of(trial))
    assert ends["died"] >= kills // 2
    thawed = [trial for trial in trials_of(study) if PAUSE in map(kind_of, attempts_of(trial)[:-1])]
    workers_of = [len({attempt["pid"] for attempt in attempts_of(trial)}) for trial in thawed]
    print(
        f"\n{url[:8]}: {dict(made)}, {with_paused} with paused trials; {states(study)}; attempts: {dict(ends)}; "
        f"{len(thawed)} continued after a pause, {sum(count > 1 for count in workers_of)} of them with several workers"
    )


def kind_of(attempt: dict[str, object]) -> str:
    outcome = str(attempt["outcome"])
    return "died" if "died" in outcome else outcome
