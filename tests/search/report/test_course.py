"""Search history: attempts and their times."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from search.report.history import PAUSE, Spell, beginning, records, spells, without_pauses
from search.study.record import ATTEMPTS, REASON, history_of
from tests.factories import definition, ended

DEFINED = definition()
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def attempt(start: float, end: float | None = None, outcome: str = "complete", pid: int = 7) -> dict[str, Any]:
    """An attempt as recorded by `search.queue.lease`; times in seconds since BEGIN."""
    ending = {} if end is None else {"ended": moment(end), "outcome": outcome, "step": 100}
    holder = {"machine": "this", "host": "here", "pid": pid, "device": "cpu", "threads": 1, "grace": 120.0}
    return {**holder, "started": moment(start), **ending}


def moment(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def trial_of(number: int, *attempts: dict[str, Any], end: float = 0.0, **changes: Any) -> FrozenTrial:
    trial = ended(
        DEFINED, changes.pop("value", 0.9), attributes={ATTEMPTS: list(attempts)} if attempts else {}, **changes
    )
    trial.number = number
    trial.datetime_start = (BEGIN + timedelta(seconds=end)).replace(tzinfo=None)
    trial.datetime_complete = trial.datetime_start if trial.state.is_finished() else None
    return trial


def test_a_search_starts_with_the_first_attempt_at_any_trial() -> None:
    retried = trial_of(0, attempt(3, 5, "given back"), attempt(20, 30), end=20)
    assert beginning([trial_of(1, attempt(10, 12), end=12), retried]) == BEGIN + timedelta(seconds=3)
    assert datetime.now(UTC) - beginning([]) < timedelta(minutes=1)


def test_spells_are_the_attempts_of_all_workers_by_start() -> None:
    trials = [
        trial_of(0, attempt(0, 5, "given back", pid=1), attempt(9, 12.5, "complete", pid=2)),
        trial_of(1, attempt(4, 8, "pruned", pid=3), state=TrialState.PRUNED),
        trial_of(2),  # waiting
    ]
    assert spells(trials, BEGIN, retrained=True) == [
        Spell("here:1", 0, True, 0, 5, "given back"),
        Spell("here:3", 1, True, 4, 8, "pruned"),
        Spell("here:2", 0, True, 9, 12.5, "complete"),
    ]


def test_a_running_attempt_ends_now() -> None:
    (spell,) = spells([trial_of(0, attempt(60), state=TrialState.RUNNING, value=None)], BEGIN, retrained=False)
    assert (spell.outcome, spell.start) == ("running", 60)
    assert spell.end == pytest.approx((datetime.now(UTC) - BEGIN).total_seconds(), abs=60)


def test_only_finished_trials_are_recorded() -> None:
    complete = trial_of(0, end=30, curve={0.25: 0.4, 1.0: 0.8, 2.0: 0.9})
    stopped = ended(DEFINED, None, curve={0.25: 0.3}, state=TrialState.PRUNED, attributes={REASON: "pruned early"})
    running = trial_of(2, value=None, state=TrialState.RUNNING)
    first, second = records(DEFINED, [complete, stopped, running], BEGIN)
    assert (first.number, first.state, first.accuracy, first.ended) == (0, "complete", 0.9, 30)
    assert first.curve == [(0.25, 0.4), (1.0, 0.8), (2.0, 0.9)]
    assert first.history == history_of(complete)
    assert (second.state, second.accuracy, second.reason) == ("pruned", 0.3, "pruned early")


def test_time_without_any_worker_is_left_out() -> None:
    night = 10 * PAUSE
    done = [
        Spell("a:1", 0, False, 0, 50, "complete"),
        Spell("b:2", 1, False, 10, 40, "pruned"),
        Spell("a:1", 2, False, 50 + PAUSE / 2, 200, "complete"),  # a short gap is no pause
        Spell("c:3", 3, False, 200 + night, 230 + night, "complete"),
        Spell("c:3", 0, True, 230 + 2 * night, 260 + 2 * night, "complete"),
    ]
    trials = records(DEFINED, [trial_of(0, end=50), trial_of(2, end=200), trial_of(3, end=230 + night)], BEGIN)
    ended_, spells_, paused = without_pauses(trials, done)
    assert paused == 2 * night
    assert [trial.ended for trial in ended_] == [50, 200, 230]
    times = [(spell.start, spell.end) for spell in spells_]
    assert times == [(0, 50), (10, 40), (50 + PAUSE / 2, 200), (200, 230), (230, 260)]
    assert without_pauses(trials[:2], done[:3]) == (trials[:2], done[:3], 0)
    assert without_pauses([], []) == ([], [], 0)


def test_a_trial_without_a_report_has_no_accuracy() -> None:
    (record,) = records(DEFINED, [ended(DEFINED, None, curve={}, state=TrialState.PRUNED)], BEGIN)
    assert (record.accuracy, record.curve) == (None, [])
