"""Leases: fenced writes, the end of an attempt, and heartbeats."""

import itertools
import threading
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from optuna.trial import Trial, TrialState
from sqlalchemy import select

from search.database.optuna_schema import engine_of
from search.database.url import DatabaseGone, default_url
from search.queue import lease
from search.queue.lease import Lost, Ticket
from search.study.record import ATTEMPTS, CHECKPOINT, REASON
from tests.factories import HEARTBEATS, claimed, queued

LONG_AGO = datetime(2001, 1, 1)


@pytest.fixture
def study(url: str) -> optuna.Study:
    return queued(url, 2, {"x": 0.5})


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def test_a_holder_writes_through_the_fence(study: optuna.Study) -> None:
    ticket = claimed(study, "a")
    study.get_trials()
    with lease.fenced(study, ticket):
        trial = Trial(study, ticket.trial_id)
        assert trial.suggest_float("x", 0, 1) == 0.5
        trial.report(0.25, 100)
        trial.set_user_attr("note", "mine")
    lease.finish(study, ticket, TrialState.COMPLETE, 0.75)
    (trial_0, trial_1) = study.trials
    assert (trial_0.value, trial_0.intermediate_values, trial_0.params) == (0.75, {100: 0.25}, {"x": 0.5})
    assert trial_0.user_attrs["note"] == "mine"
    assert trial_0.user_attrs[ATTEMPTS][-1]["outcome"] == "complete"
    assert trial_0.user_attrs[ATTEMPTS][-1]["step"] == 100
    assert trial_0.duration is not None
    assert trial_0.duration.total_seconds() >= 0
    assert trial_1.state == TrialState.WAITING


@pytest.mark.parametrize("taken_by", ["the next holder", "nobody yet"])
def test_a_worker_that_lost_its_ticket_cannot_write(study: optuna.Study, taken_by: str) -> None:
    ticket = claimed(study, "a")
    study.get_trials()
    trial = Trial(study, ticket.trial_id)
    lease.give_back(study, ticket)
    if taken_by == "the next holder":
        assert claimed(study, "b").trial_id == ticket.trial_id
    before = study.get_trials()
    with lease.fenced(study, ticket):
        for write in (
            lambda: trial.report(0.9, 200),
            lambda: trial.set_user_attr("note", "late"),
            lambda: trial.suggest_float("x", 0, 1),
            lambda: study._storage.set_trial_system_attr(ticket.trial_id, "rung", 1),
            lambda: study._storage.set_trial_state_values(ticket.trial_id, TrialState.COMPLETE, [1.0]),
        ):
            with pytest.raises(Lost):
                write()
    for late in (
        lambda: lease.finish(study, ticket, TrialState.COMPLETE, 1.0),
        lambda: lease.give_back(study, ticket),
        lambda: lease.fail(study, ticket, "late"),
    ):
        with pytest.raises(Lost):
            late()
    assert study.get_trials() == before


def test_the_fence_affects_only_its_own_thread_and_context(study: optuna.Study) -> None:
    ticket = claimed(study, "a")
    lease.give_back(study, ticket)
    with lease.fenced(study, ticket):
        other = threading.Thread(target=study.set_user_attr, args=("from", "another thread"))
        other.start()
        other.join()
    study.set_user_attr("after", "the fence")
    assert study.user_attrs.items() >= {"from": "another thread", "after": "the fence"}.items()


def test_a_returned_ticket_stays_the_same_trial(study: optuna.Study) -> None:
    ticket = claimed(study, "a")
    study._storage.set_trial_intermediate_value(ticket.trial_id, 100, 0.7)
    lease.give_back(study, ticket)
    assert states(study) == [TrialState.WAITING] * 2
    next_claim = claimed(study, "b")
    assert (next_claim.trial_id, next_claim.number) == (ticket.trial_id, 0)
    assert study.trials[0].intermediate_values == {100: 0.7}
    attempts = study.trials[0].user_attrs[ATTEMPTS]
    assert [attempt.get("outcome") for attempt in attempts] == ["given back", None]


def test_the_value_of_a_pruned_trial_is_its_last_intermediate_value(study: optuna.Study) -> None:
    ticket = claimed(study, "a")
    for step, value in ((25, 0.1), (100, 0.3), (50, 0.2)):
        study._storage.set_trial_intermediate_value(ticket.trial_id, step, value)
    lease.finish(study, ticket, TrialState.PRUNED, reason="hopeless")
    lease.finish(study, claimed(study, "b"), TrialState.PRUNED, reason="diverged before its first report")
    assert [trial.value for trial in study.trials] == [0.3, None]
    assert study.trials[0].user_attrs[REASON] == "hopeless"
    assert states(study) == [TrialState.PRUNED] * 2


def test_a_trial_fails_at_the_third_attempt_without_progress(study: optuna.Study) -> None:
    for attempt in range(3):
        assert states(study)[0] == TrialState.WAITING
        lease.fail(study, claimed(study, str(attempt)), "RuntimeError: out of memory")
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    trial = study.trials[0]
    assert trial.user_attrs[REASON] == "RuntimeError: out of memory (3 attempts failed at the same step)"
    assert len(trial.user_attrs[ATTEMPTS]) == 3
    assert trial.datetime_complete is not None


def test_attempts_with_progress_or_a_regular_end_do_not_count_as_failures(study: optuna.Study) -> None:
    for attempt in range(8):
        ticket = claimed(study, str(attempt))
        if attempt % 2:
            lease.give_back(study, ticket)
        else:
            study._storage.set_trial_intermediate_value(ticket.trial_id, 100 * (attempt + 1), 0.5)
            lease.fail(study, ticket, "killed")
    assert states(study) == [TrialState.WAITING] * 2
    for attempt in ("x", "y"):
        lease.fail(study, claimed(study, attempt), "killed")
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]


def test_training_of_an_audited_trial_after_its_last_report_counts_as_progress(study: optuna.Study) -> None:
    for epoch in range(1, 6):
        ticket = claimed(study, str(epoch))
        study._storage.set_trial_intermediate_value(ticket.trial_id, 100, 0.5)
        history = [[float(each), 0.1, 0.9, 0.1, 0.9, 1.0] for each in range(1, epoch + 1)]
        study._storage.set_trial_user_attr(ticket.trial_id, CHECKPOINT, {"name": "trial-0.pt", "history": history})
        lease.fail(study, ticket, "killed")
    assert states(study) == [TrialState.WAITING] * 2
    assert [attempt["step"] for attempt in study.trials[0].user_attrs[ATTEMPTS]] == [100, 200, 300, 400, 500]
    for attempt in ("x", "y"):
        lease.fail(study, claimed(study, attempt), "killed")
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]


def last_beat(study: optuna.Study, ticket: Ticket) -> object:
    with engine_of(study).connect() as connection:
        return connection.scalar(select(HEARTBEATS.c.heartbeat).where(HEARTBEATS.c.trial_id == ticket.trial_id))


def test_heartbeats_continue_only_while_training_advances(study: optuna.Study) -> None:
    ticket = claimed(study, "a", grace=0.3)
    beats: list[int] = []
    polled = threading.Semaphore(0)
    steps = iter([1, 2, 3, 3, 3, 3])

    def count() -> int:
        polled.release()
        return next(steps, 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "beat", lambda *_: beats.append(1))
        with lease.beating(study, ticket, count):
            for _ in range(8):
                assert polled.acquire(timeout=30)
    assert len(beats) == 3


def test_only_the_holder_of_a_ticket_renews_its_heartbeat(study: optuna.Study) -> None:
    ticket = claimed(study, "a")
    with engine_of(study).begin() as connection:
        connection.execute(HEARTBEATS.update().values(heartbeat=LONG_AGO))
    lease.beat(study, ticket)
    renewed = last_beat(study, ticket)
    assert renewed != LONG_AGO
    lease.give_back(study, ticket)
    claimed(study, "b")
    with engine_of(study).begin() as connection:
        connection.execute(HEARTBEATS.update().values(heartbeat=LONG_AGO))
    lease.beat(study, ticket)
    assert last_beat(study, ticket) == LONG_AGO


def test_a_heartbeat_that_cannot_be_stored_raises_nothing(tmp_path: Path) -> None:
    """The training thread meets the same error and reports it."""
    study = queued(default_url(tmp_path), 1)
    ticket = claimed(study, "a", grace=0.3)
    (tmp_path / "studies.db").unlink()
    polled, steps = threading.Semaphore(0), itertools.count(1)

    def count() -> int:
        polled.release()
        return next(steps)

    with lease.beating(study, ticket, count):  # an error in its thread would fail this test
        for _ in range(3):
            assert polled.acquire(timeout=30)
    with pytest.raises(DatabaseGone):
        lease.beat(study, ticket)
