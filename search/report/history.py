"""Search history: finished trials, attempts of workers, learning curves, pruning, and selection for figures."""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from fmnist.hyperparameters import ScoreOn
from search.formatting import marked, percent, points
from search.results.intervals import Share, mean_change, share
from search.results.ranking import diverged
from search.study.definition import StudyDefinition
from search.study.record import FINISHED, STEPS_PER_EPOCH, Epoch, attempts_of, audit_of, history_of, reason_of
from search.study.space import key, marks

PAUSE = 60.0  # seconds without any worker from which a gap does not count as search time


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    mark: `default`, or `start 2` for a starting point; None for a sampled trial. accuracy: the last reported; None
    without a report. curve: (epoch, accuracy) pairs. history: all scores by epoch, for an audited trial also those
    after pruning. ended: end of its last attempt, in seconds since the search started.
    """

    number: int
    mark: str | None
    state: str
    accuracy: float | None
    params: dict[str, Any]
    curve: list[tuple[float, float]]
    history: list[Epoch]
    reason: str | None
    ended: float

    @property
    def label(self) -> str:
        return marked(self.number, self.mark)


@dataclass(frozen=True)
class Spell:
    """A worker's attempt at a trial.

    worker: host and process id. retrained: whether the trial belongs to the finalists. start, end: seconds since the
    search started; the end of a running attempt is now. outcome: complete, pruned, running, or how else it ended.
    """

    worker: str
    trial: int
    retrained: bool
    start: float
    end: float
    outcome: str


def beginning(trials: list[FrozenTrial]) -> datetime:
    """Start of the first attempt at any trial; now if there is none."""
    starts = [trial.datetime_start.replace(tzinfo=UTC) for trial in trials if trial.datetime_start]  # last attempts
    starts += [attempt.started for trial in trials for attempt in attempts_of(trial)]
    return min(starts, default=datetime.now(UTC))


def records(definition: StudyDefinition, trials: Iterable[FrozenTrial], began: datetime) -> list[TrialRecord]:
    """The finished trials."""
    known = marks(definition)
    return [_record(trial, known.get(key(trial.params)), began) for trial in trials if trial.state.is_finished()]


def spells(trials: Iterable[FrozenTrial], began: datetime, *, retrained: bool) -> list[Spell]:
    """All attempts at the trials, by start."""
    now = datetime.now(UTC)
    found = []
    for trial in trials:
        for attempt in attempts_of(trial):
            start, end = attempt.started, attempt.ended or max(now, attempt.started)
            found.append(
                Spell(
                    worker=f"{attempt.host}:{attempt.pid}",
                    trial=trial.number,
                    retrained=retrained,
                    start=(start - began).total_seconds(),
                    end=(end - began).total_seconds(),
                    outcome=attempt.outcome or "running",
                )
            )
    return sorted(found, key=lambda spell: spell.start)


def without_pauses(trials: list[TrialRecord], done: list[Spell]) -> tuple[list[TrialRecord], list[Spell], float]:
    """Times without the gaps in which no worker ran, and the total length of these gaps in seconds."""
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


def _record(trial: FrozenTrial, mark: str | None, began: datetime) -> TrialRecord:
    assert trial.datetime_complete is not None  # finished trials only
    # datetime_complete of a paused trial is the end of the search, perhaps hours after its last attempt.
    attempts = [attempt.ended for attempt in attempts_of(trial) if attempt.ended]
    ended = max(attempts, default=trial.datetime_complete.replace(tzinfo=UTC))
    curve = [(step / STEPS_PER_EPOCH, value) for step, value in sorted(trial.intermediate_values.items())]
    return TrialRecord(
        number=trial.number,
        mark=mark,
        state=trial.state.name.lower(),
        accuracy=trial.value if trial.value is not None else (curve[-1][1] if curve else None),
        params=trial.params,
        curve=curve,
        history=history_of(trial),
        reason=reason_of(trial),
        ended=(ended - began).total_seconds(),
    )


FEWEST_AUDITED = 10  # trials below which no false-prune rate is reported
CONTENDERS = 3  # a false prune would have been among so many best complete trials; fewer give no rate


@dataclass(frozen=True)
class Pruning:
    """Epochs trained, and planned if every trial had run to its end.

    Counts the finished trials of the search, without diverged ones and without the epochs of audits. others: epochs
    left out.
    """

    trained: float
    planned: int
    others: float = 0.0

    @property
    def saved(self) -> float:
        """The saved share of the planned epochs."""
        return 1 - self.trained / self.planned


@dataclass(frozen=True)
class Audit:
    """Pruned trials that were trained to the end anyway.

    false: those that reached `bar`, the accuracy of the third-best complete trial; None if too few trials were
    audited or complete.
    """

    audited: int
    complete: int
    bar: float
    false: Share | None


def pruning(definition: StudyDefinition, trials: list[FrozenTrial]) -> Pruning | None:
    """Epochs saved by pruning; None if no trial was pruned."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    ended = [trial for trial in finished if history_of(trial) and (audit_of(trial) or not diverged(trial))]
    if all(trial.state == TrialState.COMPLETE for trial in ended):
        return None
    trained = sum(min(audited.since if (audited := audit_of(trial)) else math.inf, last(trial)) for trial in ended)
    planned = sum(trial.params.get("epochs", definition.defaults.epochs) for trial in ended)
    return Pruning(trained, planned, epochs_of(trials) - trained)


def epochs_of(trials: Iterable[FrozenTrial]) -> float:
    """Epochs trained over all trials."""
    return sum(last(trial) for trial in trials if history_of(trial))


def audit(definition: StudyDefinition, trials: list[FrozenTrial]) -> Audit | None:
    """Outcome of the audited trials; None without an audit or without complete trials."""
    complete = sorted((t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None), reverse=True)
    if not definition.audit or not complete:
        return None
    bar = complete[:CONTENDERS][-1]
    audited = [found for trial in trials if trial.state == TrialState.PRUNED and (found := audit_of(trial))]
    false = sum((each.accuracy or 0.0) >= bar for each in audited)  # None if it diverged
    enough = len(audited) >= FEWEST_AUDITED and len(complete) >= CONTENDERS
    return Audit(len(audited), len(complete), bar, share(false, len(audited)) if enough else None)


def last(trial: FrozenTrial) -> float:
    """The last epoch to which a trial was trained."""
    return history_of(trial)[-1].epoch


BEST_TRIALS = 5  # whose learning curves are analysed
RISE = 1.02  # of a loss over its minimum, from which it counts as overfitting


def best_trials(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The BEST_TRIALS complete trials with the highest accuracy, the best first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and history_of(trial)]
    return sorted(complete, key=lambda trial: trial.value or 0.0, reverse=True)[:BEST_TRIALS]


def overfitting(score_on: ScoreOn, trials: list[FrozenTrial]) -> str | None:
    """Finding on the best trials whose scored loss rises at the end while the training loss still falls."""
    best, rises = best_trials(trials), []
    for trial in best:
        history = history_of(trial)
        lowest, end = min(history, key=lambda epoch: epoch.loss), history[-1]
        if 0 < RISE * lowest.loss < end.loss < math.inf and end.train_loss < lowest.train_loss:
            rises.append(end.loss / lowest.loss - 1)
    if not rises:
        return None
    gap = fmean(history_of(trial)[-1].train_accuracy - history_of(trial)[-1].accuracy for trial in best)
    one = len(best) == 1
    subject = "The best trial" if one else f"{len(rises)} of the best {len(best)} trials"
    return (
        f"{subject} {'overfits: its' if len(rises) == 1 else 'overfit: their'} {score_on} loss ends "
        f"{percent(fmean(rises), 0)} above its lowest while the training loss still falls. At the end the training "
        f"accuracy (with dropout and augmentation, if any) is {points(abs(gap))} points "
        f"{'above' if gap > 0 else 'below'} the {score_on} accuracy"
        f"{'' if one else f', on average over the best {len(best)}'}."
    )


def improving(trials: list[FrozenTrial]) -> str | None:
    """Finding on good trials that still improved significantly in their last epoch.

    Trials are selected by the accuracy before that epoch; selection by the final accuracy would favour lucky last
    epochs.
    """
    ends = []
    for trial in trials:
        accuracies = [epoch.accuracy for epoch in history_of(trial) if epoch.epoch == int(epoch.epoch)]
        if trial.state == TrialState.COMPLETE and len(accuracies) >= 2:
            ends.append((accuracies[-2], accuracies[-1]))
    gains = [last - before for before, last in sorted(ends, reverse=True)[:BEST_TRIALS]]
    if len(gains) < 3:
        return None
    gain = mean_change(gains)
    if gain is None or gain.low <= 0:
        return None
    return (
        f"The {len(gains)} trials that were best before their last epoch still improved in it, by {points(gain.mean)} "
        f"points on average (95 % interval {points(gain.low)} to {points(gain.high)}): more epochs may help, in a new "
        "study (`--name`)."
    )


MOST_TRIALS = 1000  # trials per figure
MOST_CURVES = 300  # curves per state
ALWAYS_DRAWN = 100  # best trials that are always drawn


def drawn_trials(trials: list[TrialRecord], most: int = MOST_TRIALS) -> list[TrialRecord]:
    """At most `most` trials in order: the best complete ones, and an even selection of the others."""
    if len(trials) <= most:
        return trials
    complete = [trial for trial in trials if trial.state == "complete" and trial.accuracy is not None]
    best = {trial.number for trial in heapq.nlargest(ALWAYS_DRAWN, complete, key=lambda trial: trial.accuracy or 0.0)}
    others = [trial for trial in trials if trial.number not in best]
    kept = most - len(best)
    spread = {others[place * len(others) // kept].number for place in range(kept)}
    return [trial for trial in trials if trial.number in best | spread]


def drawn_curves(trials: list[TrialRecord]) -> list[TrialRecord]:
    """For each state, at most MOST_CURVES trials with intermediate values."""
    states = dict.fromkeys(trial.state for trial in trials)
    return [
        trial
        for state in states
        for trial in drawn_trials([each for each in trials if each.state == state and each.curve], MOST_CURVES)
    ]
