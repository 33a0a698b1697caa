"""Paused trials on both databases: when they continue and how they end."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.database.connection import lock, opened
from search.database.optuna_schema import engine_of, lock_trial, remove_attribute, set_state
from search.queue import freezing, lease, tickets
from search.queue.lease import Lost, Ticket
from search.queue.reaper import release
from search.queue.scheduler import Progress
from search.run.local import process_context
from search.study.definition import StudyDefinition
from search.study.record import ATTEMPTS, AUDIT, PAUSED, REASON, Paused, RecordError
from search.study.store import DEFINITION, GOAL
from tests.children import end_paused, take_all, together
from tests.factories import claimed, definition, queued

WAITING, RUNNING, COMPLETE, PRUNED = TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED
END = 400  # step after the last epoch of each trial here
COMPLETE_CURVE = {25: 0.5, 100: 0.8, 400: 0.9}  # curve of a complete trial

tokens = map(str, itertools.count())


def study_that_freezes(url: str, trials: int, **changes: Any) -> optuna.Study:
    """The study "s" with its tickets in a new database."""
    study, defined = queued(url, 0), definition(pruner="freeze", sampler="random", **changes)
    study.set_user_attr(DEFINITION, defined.model_dump(mode="json"))
    tickets.top_up(study, defined, trials)
    return study


def take(study: optuna.Study) -> Ticket:
    return claimed(study, next(tokens))


def report(study: optuna.Study, ticket: Ticket, curve: Mapping[int, float]) -> None:
    for step, accuracy in curve.items():
        study._storage.set_trial_intermediate_value(ticket.trial_id, step, accuracy)


def pause(study: optuna.Study, accuracy: float | None = None, step: int = 25, ticket: Ticket | None = None) -> int:
    """Claim a trial and pause it after another report; returns its number."""
    ticket = ticket or take(study)
    if accuracy is not None:
        report(study, ticket, {step: accuracy})
    last = study.trials[ticket.number]
    assert last.last_step
    record = Paused(step=last.last_step, accuracy=last.intermediate_values[last.last_step], end=END)
    lease.pause(study, ticket, record, last.system_attrs["fixed_params"])
    return ticket.number


def complete(study: optuna.Study, curve: Mapping[int, float] = COMPLETE_CURVE) -> int:
    ticket = take(study)
    report(study, ticket, curve)
    lease.finish(study, ticket, COMPLETE, curve[max(curve)])
    return ticket.number


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def paused(study: optuna.Study) -> list[int]:
    return [trial.number for trial in study.get_trials(deepcopy=False) if PAUSED in trial.user_attrs]


def attempts(study: optuna.Study, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = study.trials[number].user_attrs[ATTEMPTS]
    return found


def test_the_order_is_interrupted_leading_new_then_most_promising_trials(url: str) -> None:
    study = study_that_freezes(url, 7)
    complete(study)
    begun = [take(study) for _ in range(4)]
    for ticket, accuracy in zip(begun, (0.3, 0.55, 0.54, 0.1), strict=True):
        report(study, ticket, {25: accuracy})
    lease.give_back(study, begun[3])
    for ticket in begun[:3]:
        pause(study, ticket=ticket)
    assert [take(study).number for _ in range(5)] == [4, 2, 5, 6, 3]  # 1 cannot catch up with trial 0
    assert tickets.claim(study, lease.Holder(), "another") is None
    assert paused(study) == [1]


def test_an_interrupted_trial_comes_before_a_ticket_of_a_lower_number(url: str) -> None:
    """As if another worker had locked this ticket and then chosen a paused trial instead."""
    study = study_that_freezes(url, 2)
    first, second = take(study), take(study)
    report(study, second, {25: 0.1})
    lease.give_back(study, second)
    with engine_of(study).begin() as connection:
        remove_attribute(connection, first.trial_id, ATTEMPTS)
        set_state(connection, first.trial_id, WAITING)
    assert [take(study).number for _ in range(2)] == [1, 0]


def test_a_continued_trial_of_a_killed_worker_comes_first_and_is_not_paused(url: str) -> None:
    study = study_that_freezes(url, 3)
    assert pause(study, 0.5) == 0
    assert take(study).number == 0  # it leads
    assert paused(study) == []
    report(study, take(study), {25: 0.6})  # now it does not lead
    assert release(study, pid=attempts(study, 0)[-1]["pid"], killed=True) == 2
    assert [take(study).number for _ in range(3)] == [0, 1, 2]
    assert [attempt.get("outcome") for attempt in attempts(study, 0)][::2] == ["paused", None]


def test_a_leading_trial_continues_and_others_pause(url: str) -> None:
    study = study_that_freezes(url, 3)
    pause(study, 0.5)
    first, second = take(study), take(study)
    assert first.number == 0
    report(study, second, {25: 0.4})
    assert not freezing.is_chosen(study, Progress(1, 25, 0.4, END))  # a ticket is chosen
    assert freezing.is_chosen(study, Progress(0, 25, 0.5, END))
    pause(study, ticket=second)
    take(study)
    assert paused(study) == [1]
    assert freezing.is_chosen(study, Progress(2, 25, 0.45, END))
    assert not freezing.is_chosen(study, Progress(2, 25, 0.35, END))  # the paused one is chosen


def test_concurrent_processes_continue_each_paused_trial_once(url: str) -> None:
    study = study_that_freezes(url, 24)
    begun = [take(study) for _ in range(24)]
    for ticket in begun:
        pause(study, 0.4 + 0.01 * (ticket.number % 7), ticket=ticket)
    results = process_context().Queue()
    taken: list[int] = []
    with together(take_all, 4, url, results):
        for _ in range(4):
            taken += results.get()
    assert sorted(taken) == [ticket.trial_id for ticket in begun]
    assert all(len(attempts(study, number)) == 2 for number in range(24))
    assert paused(study) == []


def test_repeating_a_claim_of_a_paused_trial_returns_the_same_ticket(url: str) -> None:
    study = study_that_freezes(url, 2)
    first, second = take(study), take(study)
    pause(study, 0.5, ticket=first)
    pause(study, 0.5, ticket=second)
    ticket = claimed(study, "again")
    assert claimed(study, "again") == ticket
    assert states(study).count(RUNNING) == 1
    assert len(attempts(study, ticket.number)) == 2


def test_a_pause_is_one_transaction(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_that_freezes(url, 2)
    ticket = take(study)
    report(study, ticket, {25: 0.5})
    before = study.trials
    with monkeypatch.context() as patch:
        patch.setattr(lease, "set_state", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pause(study, ticket=ticket)
    assert study.trials == before
    pause(study, ticket=ticket)
    (trial, _) = study.trials
    assert trial.state == WAITING
    assert trial.user_attrs[PAUSED] == {"step": 25, "accuracy": 0.5, "end": END}
    assert trial.system_attrs == before[0].system_attrs
    (attempt,) = trial.user_attrs[ATTEMPTS]
    assert (attempt["outcome"], attempt["step"]) == ("paused", 25)


@pytest.mark.parametrize("taken_by", ["the next holder", "nobody yet"])
def test_a_worker_that_lost_its_ticket_cannot_pause_the_trial(url: str, taken_by: str) -> None:
    study = study_that_freezes(url, 1)
    ticket = take(study)
    report(study, ticket, {25: 0.5})
    lease.give_back(study, ticket)
    if taken_by == "the next holder":
        take(study)
    before = study.trials
    with pytest.raises(Lost):
        pause(study, ticket=ticket)
    assert study.trials == before


def test_pauses_do_not_count_as_failures(url: str) -> None:
    study = study_that_freezes(url, 1)
    for _ in range(2 * lease.MOST_ATTEMPTS):
        pause(study, 0.5)
    for _ in range(lease.MOST_ATTEMPTS - 1):
        lease.fail(study, take(study), "out of memory")
        pause(study)
        assert states(study) == [WAITING]
    lease.fail(study, take(study), "out of memory")
    assert states(study) == [TrialState.FAIL]


def test_paused_trials_count_as_finished_when_failures_are_checked(url: str) -> None:
    study = study_that_freezes(url, 4 + tickets.FAILURES)
    for _ in range(tickets.FAILURES + 1):
        for _ in range(lease.MOST_ATTEMPTS):
            lease.fail(study, take(study), "out of memory")
    with pytest.raises(tickets.TooManyFailures):
        tickets.check_failures(study)
    for ticket in [take(study), take(study)]:
        pause(study, 0.5, ticket=ticket)
    tickets.check_failures(study)


def test_the_least_promising_trials_end_if_too_many_are_paused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "MOST_PAUSED", 3)
    study = study_that_freezes(url, 6)
    begun = [take(study) for _ in range(6)]
    for ticket, accuracy in zip(begun, (0.3, 0.5, 0.1, 0.4, 0.2, 0.6), strict=True):
        pause(study, accuracy, ticket=ticket)
        if ticket.number < 5:  # the last call has to end several
            freezing.limit_paused(study)
    assert paused(study) == [0, 1, 3, 5]
    freezing.limit_paused(study)
    assert paused(study) == [1, 3, 5]
    ended = [study.trials[number] for number in (0, 2, 4)]
    assert [(trial.state, trial.value) for trial in ended] == [(PRUNED, 0.3), (PRUNED, 0.1), (PRUNED, 0.2)]
    assert all("points behind the best" in trial.user_attrs[REASON] for trial in ended)
    assert tickets.size(study) == 6


def test_an_audited_trial_is_trained_to_its_end_instead_of_being_one_too_many(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "MOST_PAUSED", 1)
    study = study_that_freezes(url, 4, audit=1.0)
    for ticket, accuracy in zip([take(study), take(study)], (0.3, 0.5), strict=True):
        pause(study, accuracy, ticket=ticket)
    freezing.limit_paused(study)
    assert states(study) == [WAITING] * 4
    assert study.trials[0].user_attrs[AUDIT] == {"since": 0.25}
    assert paused(study) == [1]
    assert take(study).number == 0


def hopeless(study: optuna.Study, count: int = 2) -> None:
    """Add a complete trial, and paused ones that are not worth training."""
    complete(study)
    for ticket in [take(study) for _ in range(count)]:
        pause(study, 0.1, ticket=ticket)


Act = Callable[[optuna.Study], object]


@pytest.mark.parametrize(
    ("trials", "act"),
    [
        (4, str),  # a ticket waits
        (4, take),  # a trial runs
        (4, lambda study: lease.give_back(study, take(study))),  # a trial was interrupted
        (3, lambda study: study.set_user_attr(GOAL, {"trials": 5, "failed": 0})),  # tickets must still be added
        (4, lambda study: pause(study, 0.6)),  # a paused trial is worth training
    ],
    ids=["ticket", "running", "interrupted", "goal", "promising"],
)
def test_no_paused_trial_ends_while_the_search_has_work_left(url: str, trials: int, act: Act) -> None:
    study = study_that_freezes(url, trials)
    hopeless(study)
    act(study)
    before = study.trials
    assert freezing.end_paused(study) == 0
    assert study.trials == before


def test_at_the_end_of_the_search_all_paused_trials_are_pruned_once(url: str) -> None:
    study = study_that_freezes(url, 4)
    hopeless(study, 3)
    assert not tickets.is_done(study)
    results = process_context().Queue()
    with together(end_paused, 3, url, results):
        assert sum(results.get() for _ in range(3)) == 3
    assert states(study) == [COMPLETE, PRUNED, PRUNED, PRUNED]
    for trial in study.trials[1:]:
        assert trial.value == 0.1
        reason = "pruned after epoch 0.25 of 4, 40.00 points behind the best trial at that epoch"
        assert trial.user_attrs[REASON] == reason
        assert trial.datetime_complete
        assert trial.user_attrs[ATTEMPTS][-1]["outcome"] == "paused"
    assert paused(study) == []
    assert tickets.is_done(study)
    assert freezing.end_paused(study) == 0


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_no_paused_trial_ends_while_another_transaction_has_locked_one(url: str) -> None:
    """On PostgreSQL only: SQLite has one writer at a time."""
    study = study_that_freezes(url, 3)
    hopeless(study)
    before = study.trials
    with opened(url, "write") as storage, storage.engine.begin() as connection:
        assert lock_trial(connection, study.trials[2]._trial_id) == WAITING
        assert freezing.end_paused(study) == 0
        assert tickets.claim(study, lease.Holder(), "token") is None
    assert study.trials == before
    assert freezing.end_paused(study) == 2


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("end", [freezing.end_paused, freezing.limit_paused])
def test_a_trial_that_was_continued_after_its_record_was_read_does_not_end(
    url: str, end: Callable[[optuna.Study], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker continued it and paused it again."""
    monkeypatch.setattr(freezing, "MOST_PAUSED", 0)
    study = study_that_freezes(url, 2)
    hopeless(study, 1)
    lock_paused = freezing._lock

    def locked(*arguments: Any) -> bool:
        monkeypatch.setattr(freezing, "_lock", lock_paused)
        with opened(url, "write") as storage:
            other = optuna.load_study(study_name="s", storage=storage)
            with engine_of(other).begin() as connection:
                trial = freezing.Queue.of(connection, other, 2).paused[1].trial
                set_state(connection, trial.trial_id, RUNNING)
                ticket = lease.begin(connection, trial, lease.Holder(), "other")
            pause(other, 0.6, 100, ticket)
        return lock_paused(*arguments)

    monkeypatch.setattr(freezing, "_lock", locked)
    end(study)
    assert freezing._lock is lock_paused
    assert states(study) == [COMPLETE, WAITING]
    assert study.trials[1].user_attrs[PAUSED]["step"] == 100


def test_paused_trials_count_towards_the_goal_and_not_as_queued_tickets(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "AHEAD", 2)
    study = study_that_freezes(url, 7)
    complete(study)
    waiting = []
    while tickets.refill(study, url) + tickets.counts(study)[WAITING] > freezing.paused(study):
        waiting.append(tickets.counts(study)[WAITING] - freezing.paused(study))
        pause(study, 0.1)
    assert waiting == [2, 2, 2, 2, 2, 1]
    assert len(states(study)) == tickets.size(study) == 7
    assert freezing.paused(study) == 6
    assert freezing.end_paused(study) == 6
    assert tickets.is_done(study)


def test_a_larger_goal_adds_trials_and_revives_no_ended_ones(url: str) -> None:
    study = study_that_freezes(url, 3)
    hopeless(study)
    freezing.end_paused(study)
    before = study.trials
    with lock(url):
        tickets.top_up(study, definition(pruner="freeze", sampler="random"), 5)
    assert study.trials[:3] == before
    assert [take(study).number for _ in range(2)] == [3, 4]
    assert tickets.claim(study, lease.Holder(), "another") is None


def test_an_added_ticket_comes_before_paused_trials(url: str) -> None:
    study = study_that_freezes(url, 3)
    complete(study)
    for ticket in [take(study), take(study)]:
        pause(study, 0.49, ticket=ticket)
    with lock(url):
        tickets.enqueue(study, definition(pruner="freeze", sampler="random"), 1, {"filters": 2})
    assert freezing.end_paused(study) == 0
    assert take(study).number == 3


def test_audited_trials_are_trained_to_their_end_before_the_search_ends(url: str) -> None:
    study = study_that_freezes(url, 4, audit=1.0)
    hopeless(study, 3)
    assert freezing.end_paused(study) == 0
    begun = [take(study), take(study)]  # concurrently
    assert {study.trials[ticket.number].user_attrs[AUDIT]["since"] for ticket in begun} == {0.25}
    assert freezing.end_paused(study) == 0
    for ticket in begun:
        lease.finish(study, ticket, PRUNED, reason="audited")
    last = take(study)
    assert freezing.end_paused(study) == 0
    lease.finish(study, last, PRUNED, reason="audited")
    assert states(study) == [COMPLETE, PRUNED, PRUNED, PRUNED]
    assert tickets.is_done(study)


def test_no_audit_begins_while_other_trials_may_change_the_choice(url: str) -> None:
    study = study_that_freezes(url, 4, audit=1.0)
    hopeless(study)
    running = take(study)
    assert tickets.claim(study, lease.Holder(), "another") is None
    lease.finish(study, running, PRUNED, reason="diverged")
    assert take(study).number in {1, 2}


def test_paused_trials_end_if_a_grid_has_no_points_left(url: str) -> None:
    """A ticket that repeats a point failed and cannot be replaced, so the search must not wait for another."""
    defined = StudyDefinition.model_validate(
        {
            "pruner": "freeze",
            "sampler": "grid",
            "defaults": {"filters": 8},
            "space": {"filters": {"choices": [8, 16, 32]}},
        }
    )
    study = queued(url, 0)
    study.set_user_attr(DEFINITION, defined.model_dump(mode="json"))
    with lock(url):
        tickets.enqueue(study, defined, 2, {"filters": 8})
        assert tickets.top_up(study, defined, None) == 4
    complete(study)
    for _ in range(lease.MOST_ATTEMPTS):
        lease.fail(study, take(study), "out of memory")
    for ticket in [take(study), take(study)]:
        pause(study, 0.1, ticket=ticket)
    assert tickets.claim(study, lease.Holder(), "token") is None
    assert tickets.refill(study, url) == 0
    assert freezing.end_paused(study) == 2
    assert tickets.is_done(study)


GOOD = {"step": 25, "accuracy": 0.5, "end": END}


@pytest.mark.parametrize(
    "altered",
    [
        "paused",
        None,
        {},
        GOOD | {"step": "25"},
        GOOD | {"step": 33},
        GOOD | {"step": -1},
        GOOD | {"accuracy": 2.0},
        GOOD | {"end": 25},
        GOOD | {"end": float("nan")},
    ],
    ids=str,
)
def test_an_altered_record_is_reported_with_its_trial(url: str, altered: object) -> None:
    study = study_that_freezes(url, 3)
    for ticket in [take(study), take(study)]:
        pause(study, 0.5, ticket=ticket)
    study._storage.set_trial_user_attr(study.trials[1]._trial_id, PAUSED, altered)
    for act in (
        lambda: tickets.claim(study, lease.Holder(), "token"),
        lambda: freezing.is_chosen(study, Progress(2, 25, 0.5, END)),
        lambda: freezing.end_paused(study),
        lambda: freezing.limit_paused(study),
    ):
        with pytest.raises(RecordError, match="trial 1: another program changed its user attribute 'paused'"):
            act()
    study._storage.set_trial_user_attr(study.trials[1]._trial_id, PAUSED, GOOD)
    lease.give_back(study, take(study))
    study._storage.set_trial_user_attr(study.trials[1]._trial_id, PAUSED, altered)
    with pytest.raises(RecordError):  # the interrupted trial, too, would depend on the record
        tickets.claim(study, lease.Holder(), "token")


def test_an_ended_trial_has_its_reported_value_not_an_altered_record(url: str) -> None:
    study = study_that_freezes(url, 2)
    hopeless(study, 1)
    study._storage.set_trial_user_attr(study.trials[1]._trial_id, PAUSED, GOOD | {"accuracy": 0.05})
    assert freezing.end_paused(study) == 1
    assert study.trials[1].value == 0.1
