"""Tickets on both databases: added, claimed once each, replaced."""

import itertools

import optuna
import pytest
from optuna.trial import TrialState

from search.database.connection import lock
from search.queue import lease, tickets
from search.queue.lease import Holder, Ticket
from search.run.local import process_context
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import ATTEMPTS
from search.study.store import DEFINITION, GOAL
from tests.children import fill, take_all, together
from tests.conftest import Make
from tests.factories import claimed, queued

SPACE = {"epochs": {"low": 1, "high": 3}, "filters": {"choices": [8, 16]}}


def definition(sampler: str = "tpe", **defaults: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {"sampler": sampler, "defaults": {"epochs": 2, "filters": 16, **defaults}, "space": SPACE}
    )


@pytest.fixture
def study(url: str) -> optuna.Study:
    return queued(url, 0)


tokens = map(str, itertools.count())


def take(study: optuna.Study) -> Ticket:
    return claimed(study, next(tokens))


def parameters(study: optuna.Study) -> list[object]:
    return [trial.system_attrs.get("fixed_params") for trial in study.trials]


def finish(study: optuna.Study, state: TrialState) -> None:
    ticket = take(study)
    if state == TrialState.FAIL:
        for _ in range(lease.MOST_ATTEMPTS - 1):
            lease.fail(study, ticket, "out of memory")
            ticket = take(study)
        lease.fail(study, ticket, "out of memory")
    else:
        lease.finish(study, ticket, state, 0.5)


def test_top_up_counts_all_but_failed_trials(study: optuna.Study) -> None:
    assert tickets.top_up(study, definition(), 5) == 5
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        finish(study, state)
    take(study)
    for requested, goal, trials in ((5, 5, 6), (5, 5, 6), (3, 5, 6), (7, 7, 8)):
        assert tickets.top_up(study, definition(), requested) == goal == tickets.size(study)
        assert len(study.trials) == trials


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "grid"])
def test_trial_0_is_the_default_configuration(study: optuna.Study, sampler: str) -> None:
    tickets.top_up(study, definition(sampler), 4)
    assert parameters(study)[0] == {"epochs": 2, "filters": 16}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_starting_points_come_next_completed_by_the_defaults(study: optuna.Study, sampler: str) -> None:
    started = StudyDefinition.model_validate(
        definition(sampler).model_dump() | {"start": [{"epochs": 3}, {"epochs": 1, "filters": 8}]}
    )
    tickets.top_up(study, started, 2)
    tickets.top_up(study, started, 5)
    assert parameters(study)[:3] == [
        {"epochs": 2, "filters": 16},
        {"epochs": 3, "filters": 16},
        {"epochs": 1, "filters": 8},
    ]
    if sampler == "random":
        assert parameters(study)[3:] == [space.random_point(started.space, 0, index, {}) for index in (2, 3)]


def test_starting_points_are_queued_after_tickets_that_the_user_added(study: optuna.Study) -> None:
    started = StudyDefinition.model_validate(definition("tpe").model_dump() | {"start": [{"epochs": 3}]})
    tickets.enqueue(study, started, 2, {"epochs": 1})
    tickets.top_up(study, started, 6)
    tickets.top_up(study, started, 7)
    assert parameters(study) == [
        {"epochs": 1, "filters": 16},
        {"epochs": 1},
        {"epochs": 2, "filters": 16},
        {"epochs": 3, "filters": 16},
        *[None] * 3,
    ]


CONDITIONAL = StudyDefinition.model_validate(
    {
        "sampler": "random",
        "defaults": {"architecture": "cnn", "filters": 16},
        "space": {
            "architecture": {"choices": ["simple", "cnn"]},
            "filters": [
                {"low": 2, "high": 4, "when": {"architecture": "simple"}},
                {"low": 8, "high": 16, "when": {"architecture": "cnn"}},
            ],
        },
    }
)


@pytest.mark.parametrize("sampler", ["random", "qmc", "grid"])
def test_fixed_values_decide_which_conditional_values_a_ticket_has(study: optuna.Study, sampler: str) -> None:
    """A ticket never has the number of filters of another network."""
    conditional = CONDITIONAL.model_copy(update={"sampler": sampler})
    assert tickets.enqueue(study, conditional, 6, {"architecture": "simple"}) == 6
    points = parameters(study)
    assert all(point["architecture"] == "simple" for point in points)  # type: ignore[index]
    assert {point.get("filters") for point in points} <= {None, 2, 3, 4}  # type: ignore[attr-defined]


def test_a_grid_queues_each_point_once(study: optuna.Study) -> None:
    for requested, goal in ((4, 4), (50, 6), (50, 6)):
        assert tickets.top_up(study, definition("grid"), requested) == goal == len(study.trials)
    assert len({str(ticket) for ticket in parameters(study)}) == 6 == tickets.size(study)
    finish(study, TrialState.FAIL)
    assert tickets.top_up(study, definition("grid"), 50) == 6
    assert parameters(study)[-1] == parameters(study)[0]


def test_a_grid_with_seeds_queues_each_point_once_before_repeating_any(study: optuna.Study) -> None:
    defined = definition("grid").model_copy(update={"seeds": 3})
    assert tickets.top_up(study, defined, 8) == 8
    assert tickets.top_up(study, defined, None) == 18
    rounds = [{str(ticket) for ticket in parameters(study)[start : start + 6]} for start in (0, 6, 12)]
    assert [len(each) for each in rounds] == [6, 6, 6]
    finish(study, TrialState.COMPLETE)
    finish(study, TrialState.FAIL)
    assert tickets.top_up(study, defined, None) == 18
    assert parameters(study)[-1] == parameters(study)[1]
    more = defined.model_copy(update={"seeds": 4})
    assert tickets.top_up(study, more, None) == 24
    assert len({str(ticket) for ticket in parameters(study)[19:]}) == 6


def test_the_default_number_of_trials_is_fifty(study: optuna.Study) -> None:
    assert tickets.top_up(study, definition("random"), 0) == 0 == len(study.trials)
    assert tickets.top_up(study, definition("random"), None) == 50


def test_points_do_not_depend_on_how_the_queue_was_filled(study: optuna.Study) -> None:
    tickets.top_up(study, definition("qmc"), 3)
    tickets.top_up(study, definition("qmc"), 8)
    other = optuna.create_study(storage=study._storage)
    tickets.top_up(other, definition("qmc"), 8)
    assert parameters(study) == parameters(other)


def test_enqueued_trials_raise_the_goal_and_have_the_fixed_values(study: optuna.Study) -> None:
    tickets.top_up(study, definition("random"), 3)
    assert tickets.enqueue(study, definition("random"), 2, {"epochs": 3}) == 2
    assert tickets.enqueue(study, definition(), 1, {"epochs": 1}) == 1
    assert tickets.goal(study)["trials"] == 6
    assert [ticket["epochs"] for ticket in parameters(study)[3:5]] == [3, 3]
    assert parameters(study)[5] == {"epochs": 1}
    assert set(parameters(study)[3]) == {"epochs", "filters"}


def test_a_claim_takes_the_oldest_ticket_and_records_its_holder(study: optuna.Study) -> None:
    tickets.top_up(study, definition(), 2)
    holder = Holder(device="cuda:1", threads=3, grace=7)
    ticket = tickets.claim(study, holder, "first")
    trial = study.trials[0]
    assert ticket is not None
    assert (ticket.trial_id, ticket.number) == (trial._trial_id, 0)
    assert trial.state == TrialState.RUNNING
    assert trial.datetime_start is not None
    (attempt,) = trial.user_attrs[ATTEMPTS]
    assert attempt["started"]
    recorded = [attempt[key] for key in ("token", "device", "threads", "grace", "host", "pid")]
    assert recorded == ["first", "cuda:1", 3, 7, holder.host, holder.pid]
    assert take(study).number == 1
    assert tickets.claim(study, holder, "third") is None
    assert not tickets.is_empty(study)


def test_repeating_a_claim_with_its_token_returns_the_same_ticket(study: optuna.Study) -> None:
    tickets.top_up(study, definition(), 2)
    first = tickets.claim(study, Holder(), "token")
    assert tickets.claim(study, Holder(), "token") == first
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.WAITING]


def test_a_queue_is_empty_when_all_is_finished(study: optuna.Study) -> None:
    tickets.top_up(study, definition(), 2)
    finish(study, TrialState.COMPLETE)
    assert not tickets.is_empty(study)
    finish(study, TrialState.PRUNED)
    assert tickets.is_empty(study)


def test_failed_trials_are_replaced_up_to_the_goal(study: optuna.Study, url: str) -> None:
    study.set_user_attr(DEFINITION, definition().model_dump(mode="json"))
    tickets.top_up(study, definition(), 4)
    finish(study, TrialState.FAIL)
    assert tickets.refill(study, url) == 1
    assert tickets.refill(study, url) == 0
    assert tickets.size(study) == 4 == len(study.trials) - 1


def test_tickets_are_created_as_they_are_needed(study: optuna.Study, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "AHEAD", 4)
    defined = definition("random")
    study.set_user_attr(DEFINITION, defined.model_dump(mode="json"))
    assert tickets.top_up(study, defined, 10) == 10
    assert tickets.enqueue(study, defined, 3, {"epochs": 3}) == 3
    waiting = []
    while not tickets.is_empty(study) or tickets.refill(study, url):
        waiting.append(tickets.counts(study)[TrialState.WAITING])
        finish(study, TrialState.PRUNED)
    assert waiting == [7, 6, 5, 4, 3, 2, 1, 4, 3, 2, 1, 2, 1]
    assert len({str(ticket) for ticket in parameters(study)}) > 4
    assert tickets.refill(study, url) == 0


def test_tickets_and_goal_are_stored_in_one_transaction(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets.top_up(study, definition("random"), 2)
    monkeypatch.setattr(tickets, "write_study_attribute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tickets.enqueue(study, definition("random"), 3, {})
    assert len(study.trials) == tickets.goal(study)["trials"] == 2


def test_an_exhausted_grid_adds_no_tickets(study: optuna.Study) -> None:
    tickets.top_up(study, definition("grid"), 4)
    assert tickets.enqueue(study, definition("grid"), 5, {}) == 2
    assert tickets.enqueue(study, definition("grid"), 5, {}) == 0
    assert tickets.goal(study)["trials"] == 6


def test_too_many_failures_end_the_replacement_of_failed_trials(study: optuna.Study, url: str) -> None:
    tickets.top_up(study, definition(), 10)
    for _ in range(2):
        finish(study, TrialState.COMPLETE)
    for _ in range(tickets.FAILURES + 1):
        tickets.check_failures(study)
        finish(study, TrialState.FAIL)
    tickets.check_failures(study)  # one more is allowed, for two that finished
    finish(study, TrialState.FAIL)
    with pytest.raises(tickets.TooManyFailures, match=r"5 trials failed, the last one with: out of memory \(3 "):
        tickets.refill(study, url)
    tickets.top_up(study, definition(), 10)  # a new request resets the count
    tickets.check_failures(study)


def test_concurrent_callers_with_the_same_goal_do_not_add_up(study: optuna.Study, url: str) -> None:
    with together(fill, 3, url, definition(), 30):
        pass
    assert len(study.trials) == 30


def test_concurrent_processes_claim_each_ticket_once(study: optuna.Study, url: str) -> None:
    tickets.top_up(study, definition(), 60)
    results = process_context().Queue()
    taken: list[int] = []
    with together(take_all, 4, url, results):
        for _ in range(4):
            taken += results.get()
    assert sorted(taken) == [trial._trial_id for trial in study.trials]


@pytest.mark.parametrize("call", ["top_up", "refill"])
def test_tickets_that_another_process_adds_after_counting_are_not_added_twice(
    study: optuna.Study, url: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the database's lock was lost with its connection and another process acquired it meanwhile."""
    defined = definition("random")
    study.set_user_attr(DEFINITION, defined.model_dump(mode="json"))
    study.set_user_attr(GOAL, {"trials": 8, "failed": 0})
    count = tickets._next_points

    def counted(*arguments: object) -> object:
        monkeypatch.setattr(tickets, "_next_points", count)
        points = count(*arguments)  # type: ignore[arg-type]
        tickets.top_up(study, defined, 8)
        return points

    monkeypatch.setattr(tickets, "_next_points", counted)
    tickets.top_up(study, defined, 8) if call == "top_up" else tickets.refill(study, url)
    assert len(study.trials) == 8


def test_the_goal_is_lowered_if_a_grid_has_no_points_left(make: Make, url: str) -> None:
    """A ticket that repeats a point of the grid fails, and cannot be replaced."""
    defined = StudyDefinition.model_validate(
        {"sampler": "grid", "defaults": {"filters": 8}, "space": {"filters": {"choices": [8, 16]}}}
    )
    study, settings = make(defined, 0, url)
    with lock(settings.storage):
        tickets.enqueue(study, defined, 2, {"filters": 8})
        assert tickets.top_up(study, defined, None) == 3
    for state in (TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE):
        finish(study, state)
    before = tickets.goal(study)
    assert not tickets.is_done(study)
    assert tickets.refill(study, settings.storage) == 0
    assert tickets.is_done(study)
    assert tickets.goal(study) == before | {"trials": 2}
