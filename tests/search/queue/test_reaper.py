"""Tickets of the dead and the silent go back, those of the living stay."""

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


def test_the_silent_lose_their_tickets_and_the_others_keep_them(study: optuna.Study) -> None:
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


def test_a_holder_is_given_the_grace_that_it_claimed_with(study: optuna.Study) -> None:
    impatient, patient = claim(study, grace=60), claim(study, grace=1e10)
    for ticket in (impatient, patient):
        fall_silent(study, ticket)
    assert reaper.reap(study) == 1
    assert states(study)[:2] == [WAITING, RUNNING]


def test_a_worker_killed_right_after_its_claim_has_a_heartbeat(study: optuna.Study) -> None:
    first = {"trial_id": study.trials[0]._trial_id, "heartbeat": datetime(2001, 1, 1)}
    with engine_of(study).begin() as connection:  # of an earlier claim, and old
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


def test_trials_that_others_started_are_left_alone_and_said(study: optuna.Study) -> None:
    claim(study, host="far", pid=7)
    theirs = optuna.load_study(study_name="s", storage=study._storage).ask()
    assert reaper.reap(study) + reaper.release(study, pid=os.getpid()) == 0
    assert reaper.held(study) == [
        "trial 0 by process 7 on far",
        f"trial {theirs.number} by another program",
    ]


def test_the_reaped_run_out_of_attempts_too(study: optuna.Study) -> None:
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


def test_a_reaper_that_is_killed_halfway_leaves_the_rest_to_the_next(study: optuna.Study, url: str) -> None:
    for _ in range(3):
        fall_silent(study, claim(study))
    died = subprocess.run([sys.executable, "-c", REAPER_KILLED_HALFWAY, url], check=False)
    assert died.returncode == -9
    assert states(study) == [WAITING, RUNNING, RUNNING, WAITING]  # the second was not committed
    assert reaper.reap(study) == 2
    assert states(study) == [WAITING] * 4
    assert [len(trial.user_attrs.get(ATTEMPTS, [])) for trial in study.trials] == [1, 1, 1, 0]


def test_reapers_that_work_together_end_each_attempt_once(study: optuna.Study, url: str) -> None:
    for _ in range(4):
        fall_silent(study, claim(study))
    with together(reap_all, 3, url):
        pass
    reaper.reap(study)  # what each of them skipped because another had it locked
    assert states(study) == [WAITING] * 4
    assert [len(trial.user_attrs[ATTEMPTS]) for trial in study.trials] == [1] * 4


def test_alive_tells_the_living_from_the_dead() -> None:
    assert reaper.alive(os.getpid())
    assert reaper.alive(1)
    assert not reaper.alive(dead_process())
    unwaited = multiprocessing.get_context("spawn").Process(target=int)
    unwaited.start()
    assert unwaited.pid is not None
    os.waitid(os.P_PID, unwaited.pid, os.WEXITED | os.WNOWAIT)
    assert not reaper.alive(unwaited.pid)
    unwaited.join()
