"""Tickets of dead workers and of workers without a heartbeat return to the queue; others stay."""

import multiprocessing
import os
import subprocess
import sys
from datetime import datetime

import optuna
import pytest
from optuna.trial import TrialState

from search.database.optuna_schema import engine_of
from search.queue import lease, reaper
from search.queue.lease import Ticket
from search.study.record import ATTEMPTS
from tests.children import reap_all, together
from tests.factories import HEARTBEATS, claimed, queued

WAITING, RUNNING = TrialState.WAITING, TrialState.RUNNING


@pytest.fixture
def study(url: str) -> optuna.Study:
    return queued(url, 4)


def claim(study: optuna.Study, **holder: object) -> Ticket:
    return claimed(study, os.urandom(8).hex(), **holder)


def fall_silent(study: optuna.Study, ticket: Ticket) -> None:
    with engine_of(study).begin() as connection:
        row = HEARTBEATS.c.trial_id == ticket.trial_id
        connection.execute(HEARTBEATS.update().where(row).values(heartbeat=datetime(2001, 1, 1)))


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def dead_process() -> int:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def test_only_workers_without_a_heartbeat_lose_their_tickets(study: optuna.Study) -> None:
    silent, alive = claim(study, grace=60), claim(study, grace=60)
    fall_silent(study, silent)
    assert reaper.reap(study) == 1
    assert reaper.reap(study) == 0
    assert states(study) == [WAITING, RUNNING, WAITING, WAITING]
    outcome = study.trials[0].user_attrs[ATTEMPTS][-1]["outcome"]
    assert outcome.startswith(f"process {os.getpid()} on ")
    assert "made no progress for" in outcome
    with pytest.raises(lease.Lost):
        lease.give_back(study, silent)
    lease.give_back(study, alive)


def test_the_grace_is_that_of_the_claim(study: optuna.Study) -> None:
    impatient, patient = claim(study, grace=60), claim(study, grace=1e10)
    for ticket in (impatient, patient):
        fall_silent(study, ticket)
    assert reaper.reap(study) == 1
    assert states(study)[:2] == [WAITING, RUNNING]


def test_a_worker_killed_right_after_its_claim_has_a_heartbeat(study: optuna.Study) -> None:
    first = {"trial_id": study.trials[0]._trial_id, "heartbeat": datetime(2001, 1, 1)}
    with engine_of(study).begin() as connection:  # an old heartbeat of an earlier claim
        connection.execute(HEARTBEATS.insert().values(**first))
    claim(study, grace=60)
    assert reaper.reap(study) == 0
    claim(study, grace=-1)
    assert reaper.reap(study) == 1


def test_only_dead_processes_of_this_machine_are_released(study: optuna.Study) -> None:
    dead = dead_process()
    for holder in ({"pid": dead}, {"pid": os.getpid()}, {"pid": dead, "machine": "another"}):
        claim(study, **holder)
    assert reaper.release(study) == 1
    assert states(study) == [WAITING, RUNNING, RUNNING, WAITING]
    assert reaper.release(study, pid=os.getpid()) == 1
    assert f"process {dead} on " in study.trials[0].user_attrs[ATTEMPTS][-1]["outcome"]


def test_trials_that_other_programs_started_are_reported_and_left_alone(study: optuna.Study) -> None:
    claim(study, host="far", pid=7)
    theirs = optuna.load_study(study_name="s", storage=study._storage).ask()
    assert reaper.reap(study) + reaper.release(study, pid=os.getpid()) == 0
    assert reaper.held(study) == [
        "trial 0 by process 7 on far",
        f"trial {theirs.number} by another program",
    ]


def test_reaped_attempts_count_as_failures(study: optuna.Study) -> None:
    for attempt in range(lease.MOST_ATTEMPTS):
        assert states(study)[0] == WAITING, attempt
        fall_silent(study, claim(study))
        assert reaper.reap(study) == 1
    assert states(study) == [TrialState.FAIL, WAITING, WAITING, WAITING]


REAPER_KILLED_HALFWAY = """
import os, signal, sys
import optuna
from search.queue import lease, reaper
from search.database.connection import open_storage
study = optuna.load_study(study_name="s", storage=open_storage(sys.argv[1], "write"))
end, ended = lease._end, []
def end_and_die(*arguments):
    end(*arguments)
    ended.append(arguments)
    if len(ended) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
lease._end = end_and_die
reaper.reap(study)
"""


def test_the_next_reaper_continues_after_one_that_was_killed(study: optuna.Study, url: str) -> None:
    for _ in range(3):
        fall_silent(study, claim(study))
    died = subprocess.run([sys.executable, "-c", REAPER_KILLED_HALFWAY, url], check=False)
    assert died.returncode == -9
    assert states(study) == [WAITING, RUNNING, RUNNING, WAITING]  # the second was not committed
    assert reaper.reap(study) == 2
    assert states(study) == [WAITING] * 4
    assert [len(trial.user_attrs.get(ATTEMPTS, [])) for trial in study.trials] == [1, 1, 1, 0]


def test_concurrent_reapers_end_each_attempt_once(study: optuna.Study, url: str) -> None:
    for _ in range(4):
        fall_silent(study, claim(study))
    with together(reap_all, 3, url):
        pass
    reaper.reap(study)  # those that each process skipped because another had locked them
    assert states(study) == [WAITING] * 4
    assert [len(trial.user_attrs[ATTEMPTS]) for trial in study.trials] == [1] * 4


def test_zombies_and_ended_processes_are_not_alive() -> None:
    assert reaper.alive(os.getpid())
    assert reaper.alive(1)
    assert not reaper.alive(dead_process())
    unwaited = multiprocessing.get_context("spawn").Process(target=int)
    unwaited.start()
    assert unwaited.pid is not None
    os.waitid(os.P_PID, unwaited.pid, os.WEXITED | os.WNOWAIT)
    assert not reaper.alive(unwaited.pid)
    unwaited.join()
