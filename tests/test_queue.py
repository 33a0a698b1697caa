import multiprocessing
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search import queue
from search.definition import StudyDefinition
from search.storage import default_url, lock, open_storage

SPACE = {"epochs": {"low": 1, "high": 3}, "filters": {"choices": [8, 16]}}


def definition(sampler: str = "tpe", **defaults: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {"sampler": sampler, "defaults": {"epochs": 2, "filters": 16, **defaults}, "space": SPACE}
    )


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    storage = open_storage(default_url(tmp_path), "create")
    return optuna.create_study(storage=storage, study_name="s", direction="maximize")


def tickets(study: optuna.Study) -> list[object]:
    return [trial.system_attrs.get("fixed_params") for trial in study.trials]


def finish(study: optuna.Study, state: TrialState) -> None:
    trial_id = queue.claim(study, queue.Owner())
    assert trial_id is not None
    study._storage.set_trial_state_values(trial_id, state, [0.5] if state == TrialState.COMPLETE else None)


def test_top_up_counts_all_but_failed_trials(study: optuna.Study) -> None:
    assert queue.top_up(study, definition(), 5) == 5
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        finish(study, state)
    queue.claim(study, queue.Owner())
    assert queue.top_up(study, definition(), 5) == 1
    assert queue.top_up(study, definition(), 5) == 0
    assert queue.top_up(study, definition(), 3) == 0
    assert queue.top_up(study, definition(), 7) == 2


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "grid"])
def test_trial_0_is_the_default_configuration(study: optuna.Study, sampler: str) -> None:
    queue.top_up(study, definition(sampler), 4)
    assert tickets(study)[0] == {"epochs": 2, "filters": 16}


def test_a_grid_is_each_point_once_and_then_ends(study: optuna.Study) -> None:
    assert queue.top_up(study, definition("grid"), 4) == 4
    assert queue.top_up(study, definition("grid"), 50) == 2
    assert queue.top_up(study, definition("grid"), 50) == 0
    assert len({str(ticket) for ticket in tickets(study)}) == 6 == queue.size(study)
    finish(study, TrialState.FAIL)
    assert queue.top_up(study, definition("grid"), 50) == 1
    assert tickets(study)[-1] == tickets(study)[0]


def test_points_do_not_depend_on_how_the_queue_was_filled(study: optuna.Study, tmp_path: Path) -> None:
    queue.top_up(study, definition("qmc"), 3)
    queue.top_up(study, definition("qmc"), 8)
    other = optuna.create_study(storage=open_storage(default_url(tmp_path / "other"), "create"))
    queue.top_up(other, definition("qmc"), 8)
    assert tickets(study) == tickets(other)


def test_a_claim_takes_the_oldest_ticket_and_names_its_owner(study: optuna.Study) -> None:
    queue.top_up(study, definition(), 2)
    owner = queue.Owner()
    trial_id = queue.claim(study, owner)
    trial = study.trials[0]
    assert trial._trial_id == trial_id
    assert trial.state == TrialState.RUNNING
    assert trial.datetime_start is not None
    assert trial.user_attrs[queue.OWNER]["token"] == owner.token
    assert queue.claim(study, owner) == study.trials[1]._trial_id
    assert queue.claim(study, owner) is None
    assert not queue.is_empty(study)
    for each in study.trials:
        study._storage.set_trial_state_values(each._trial_id, TrialState.PRUNED)
    assert queue.is_empty(study)


def test_a_ticket_that_is_given_back_is_the_same_trial(study: optuna.Study) -> None:
    queue.top_up(study, definition("random"), 1)
    trial_id = queue.claim(study, queue.Owner())
    assert trial_id is not None
    study._storage.set_trial_intermediate_value(trial_id, 100, 0.7)
    assert queue.give_back(study, trial_id, study.trials[0].user_attrs[queue.OWNER])
    assert study.trials[0].state == TrialState.WAITING
    assert queue.claim(study, queue.Owner()) == trial_id
    assert study.trials[0].intermediate_values == {100: 0.7}
    assert len(study.trials) == 1


def test_nobody_gives_back_what_another_holds_or_has_finished(study: optuna.Study) -> None:
    queue.top_up(study, definition(), 1)
    first = queue.Owner()
    trial_id = queue.claim(study, first)
    assert trial_id is not None
    assert queue.give_back(study, trial_id, asdict(first))
    assert not queue.give_back(study, trial_id, asdict(first))
    second = queue.Owner()
    queue.claim(study, second)
    assert not queue.give_back(study, trial_id, asdict(first))
    assert study.trials[0].state == TrialState.RUNNING
    study._storage.set_trial_state_values(trial_id, TrialState.PRUNED)
    assert not queue.give_back(study, trial_id, asdict(second))
    assert study.trials[0].state == TrialState.PRUNED


def test_running_trials_are_said_with_their_holders(study: optuna.Study) -> None:
    queue.top_up(study, definition(), 2)
    queue.claim(study, queue.Owner(host="far", pid=7))
    study.ask()
    assert queue.held(study) == ["trial 0 by process 7 on far", "trial 1 by something other than fmnist-search"]


def test_only_dead_workers_of_this_machine_lose_their_tickets(study: optuna.Study) -> None:
    queue.top_up(study, definition(), 4)
    dead = multiprocessing.get_context("spawn").Process(target=int)
    dead.start()
    dead.join()
    assert dead.pid is not None
    queue.claim(study, queue.Owner(pid=dead.pid))
    queue.claim(study, queue.Owner(pid=os.getpid()))
    queue.claim(study, queue.Owner(pid=dead.pid, host=f"not-{socket.gethostname()}"))
    assert queue.release(study) == 1
    assert [trial.state for trial in study.trials] == [
        TrialState.WAITING,
        TrialState.RUNNING,
        TrialState.RUNNING,
        TrialState.WAITING,
    ]
    assert queue.release(study, pid=os.getpid()) == 1


def fill(url: str, trials: int) -> None:
    study = optuna.load_study(storage=open_storage(url, "write"), study_name="s")
    with lock(url):
        queue.top_up(study, definition(), trials)


def take_all(url: str, results: "multiprocessing.Queue[list[int]]") -> None:
    study = optuna.load_study(storage=open_storage(url, "write"), study_name="s")
    results.put(list(iter(lambda: queue.claim(study, queue.Owner()), None)))  # type: ignore[arg-type]


def spawned(target: object, arguments: list[tuple[object, ...]]) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=each) for each in arguments]  # type: ignore[arg-type]
    for process in processes:
        process.start()
    yield
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)


def test_two_that_fill_at_once_do_not_add_up(study: optuna.Study, tmp_path: Path) -> None:
    for _ in spawned(fill, [(default_url(tmp_path), 30)] * 3):
        pass
    assert len(study.trials) == 30


def test_processes_that_drain_together_take_each_ticket_once(study: optuna.Study, tmp_path: Path) -> None:
    queue.top_up(study, definition(), 60)
    results: multiprocessing.Queue[list[int]] = multiprocessing.get_context("spawn").Queue()
    taken: list[int] = []
    for _ in spawned(take_all, [(default_url(tmp_path), results)] * 4):
        for _ in range(4):
            taken += results.get()
    assert sorted(taken) == [trial._trial_id for trial in study.trials]
