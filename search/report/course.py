"""How a search went: what became of each trial, and what each worker did when."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from search.queue.lease import ATTEMPTS, REASON
from search.study.store import STEPS_PER_EPOCH, Epoch, history_of

PAUSE = 60.0  # seconds in which nobody works, from which on they are none of the search's


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    accuracy: its last, None if it had none. curve: (epoch, accuracy) pairs. history: the same with the
    training's own, and beyond a pruning where it was audited. ended: seconds since the search began.
    """

    number: int
    state: str
    accuracy: float | None
    params: dict[str, Any]
    curve: list[tuple[float, float]]
    history: list[Epoch]
    reason: str | None
    ended: float


@dataclass(frozen=True)
class Spell:
    """One attempt of a worker at a trial.

    worker: its host and process id. again: whether the trial is one of the finalists. start, end: seconds
    since the search began; of one that runs still, the end is now. outcome: complete, pruned, running, or how
    else the attempt ended.
    """

    worker: str
    trial: int
    again: bool
    start: float
    end: float
    outcome: str


def beginning(trials: list[FrozenTrial]) -> datetime:
    """When the first trial began; now if none has."""
    starts = [trial.datetime_start.replace(tzinfo=UTC) for trial in trials if trial.datetime_start]  # of last attempts
    starts += [_moment(attempt["started"]) for trial in trials for attempt in _attempts(trial)]
    return min(starts, default=datetime.now(UTC))


def records(trials: Iterable[FrozenTrial], began: datetime) -> list[TrialRecord]:
    """The finished trials."""
    return [_record(trial, began) for trial in trials if trial.state.is_finished()]


def spells(trials: Iterable[FrozenTrial], began: datetime, *, again: bool) -> list[Spell]:
    """What workers did, in the order in which they began it."""
    now = datetime.now(UTC)
    found = []
    for trial in trials:
        for attempt in _attempts(trial):
            start = _moment(attempt["started"])
            end = _moment(attempt["ended"]) if "ended" in attempt else max(now, start)
            found.append(
                Spell(
                    worker=f"{attempt['host']}:{attempt['pid']}",
                    trial=trial.number,
                    again=again,
                    start=(start - began).total_seconds(),
                    end=(end - began).total_seconds(),
                    outcome=attempt.get("outcome", "running"),
                )
            )
    return sorted(found, key=lambda spell: spell.start)


def without_pauses(trials: list[TrialRecord], done: list[Spell]) -> tuple[list[TrialRecord], list[Spell], float]:
    """The same on a clock that stands still while nobody works; and how many seconds it stood still."""
    pauses, reached = [], 0.0
    for spell in sorted(done, key=lambda spell: spell.start):
        if spell.start - reached > PAUSE:
            pauses.append((spell.start, spell.start - reached))
        reached = max(reached, spell.end)

    def at(seconds: float) -> float:
        return seconds - sum(length for end, length in pauses if end <= seconds)

    return (
        [replace(trial, ended=at(trial.ended)) for trial in trials],
        [replace(spell, start=at(spell.start), end=at(spell.end)) for spell in done],
        sum(length for _, length in pauses),
    )


def _record(trial: FrozenTrial, began: datetime) -> TrialRecord:
    assert trial.datetime_complete is not None  # it has ended
    curve = [(step / STEPS_PER_EPOCH, value) for step, value in sorted(trial.intermediate_values.items())]
    return TrialRecord(
        number=trial.number,
        state=trial.state.name.lower(),
        accuracy=trial.value if trial.value is not None else (curve[-1][1] if curve else None),
        params=trial.params,
        curve=curve,
        history=history_of(trial),
        reason=trial.user_attrs.get(REASON),
        ended=(trial.datetime_complete.replace(tzinfo=UTC) - began).total_seconds(),
    )


def _attempts(trial: FrozenTrial) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]] = trial.user_attrs.get(ATTEMPTS, [])
    return attempts


def _moment(written: str) -> datetime:
    return datetime.fromisoformat(written)
