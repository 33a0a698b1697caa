"""How a search went: trials, what each worker did when, learning curves, pruning, and what a page draws of many."""

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

PAUSE = 60.0  # seconds in which nobody works, from which on they are none of the search's


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    mark: default, or start 2 of the study's starting points; None of what was sampled. accuracy: its last, None if it
    had none. curve: (epoch, accuracy) pairs. history: the same with the training's own, and beyond a pruning where it
    was audited. ended: its last training, in seconds since the search began.
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
    starts += [attempt.started for trial in trials for attempt in attempts_of(trial)]
    return min(starts, default=datetime.now(UTC))


def records(definition: StudyDefinition, trials: Iterable[FrozenTrial], began: datetime) -> list[TrialRecord]:
    """The finished trials."""
    known = marks(definition)
    return [_record(trial, known.get(key(trial.params)), began) for trial in trials if trial.state.is_finished()]


def spells(trials: Iterable[FrozenTrial], began: datetime, *, again: bool) -> list[Spell]:
    """What workers did, in the order in which they began it."""
    now = datetime.now(UTC)
    found = []
    for trial in trials:
        for attempt in attempts_of(trial):
            start, end = attempt.started, attempt.ended or max(now, attempt.started)
            found.append(
                Spell(
                    worker=f"{attempt.host}:{attempt.pid}",
                    trial=trial.number,
                    again=again,
                    start=(start - began).total_seconds(),
                    end=(end - began).total_seconds(),
                    outcome=attempt.outcome or "running",
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


def _record(trial: FrozenTrial, mark: str | None, began: datetime) -> TrialRecord:
    assert trial.datetime_complete is not None  # it has ended
    # A paused trial ends with the search, perhaps hours after it was last trained.
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


FEWEST_AUDITED = 10  # trials below which a rate of false prunes is not given
CONTENDERS = 3  # best completed trials that a pruned one would have had to be among; with fewer there is no rate


@dataclass(frozen=True)
class Pruning:
    """Epochs trained, and those that all trials would have taken to their ends.

    Of the search's finished trials, without those that diverged and what an audit trained on. others: epochs of the
    search that are left out.
    """

    trained: float
    whole: int
    others: float = 0.0

    @property
    def saved(self) -> float:
        """The share of the work that was not done."""
        return 1 - self.trained / self.whole


@dataclass(frozen=True)
class Audit:
    """Pruned trials that were trained to the end all the same.

    false: those that came to at least `bar`, the accuracy of the last of the best completed
    trials; None where too few trials were audited, or completed.
    """

    audited: int
    complete: int
    bar: float
    false: Share | None


def pruning(definition: StudyDefinition, trials: list[FrozenTrial]) -> Pruning | None:
    """What was saved by ending trials early; None if none was."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    ended = [trial for trial in finished if history_of(trial) and (audit_of(trial) or not diverged(trial))]
    if all(trial.state == TrialState.COMPLETE for trial in ended):
        return None
    trained = sum(min(audited.since if (audited := audit_of(trial)) else math.inf, last(trial)) for trial in ended)
    whole = sum(trial.params.get("epochs", definition.defaults.epochs) for trial in ended)
    return Pruning(trained, whole, epochs_of(trials) - trained)


def epochs_of(trials: Iterable[FrozenTrial]) -> float:
    """Epochs that were trained over all of them."""
    return sum(last(trial) for trial in trials if history_of(trial))


def audit(definition: StudyDefinition, trials: list[FrozenTrial]) -> Audit | None:
    """What became of the audited trials; None if the study has no audit, or nothing to hold them against."""
    complete = sorted((t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None), reverse=True)
    if not definition.audit or not complete:
        return None
    bar = complete[:CONTENDERS][-1]
    audited = [found for trial in trials if trial.state == TrialState.PRUNED and (found := audit_of(trial))]
    false = sum((each.accuracy or 0.0) >= bar for each in audited)  # one that diverged has none
    enough = len(audited) >= FEWEST_AUDITED and len(complete) >= CONTENDERS
    return Audit(len(audited), len(complete), bar, share(false, len(audited)) if enough else None)


def last(trial: FrozenTrial) -> float:
    """The last epoch that a trial was trained to."""
    return history_of(trial)[-1].epoch


BEST_TRIALS = 5  # trials whose curves are looked at
RISE = 1.02  # of a loss over its minimum: less is not called overfitting


def best_trials(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials of the highest accuracy, the best first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and history_of(trial)]
    return sorted(complete, key=lambda trial: trial.value or 0.0, reverse=True)[:BEST_TRIALS]


def overfitting(score_on: ScoreOn, trials: list[FrozenTrial]) -> str | None:
    """Of the best trials, those whose scored loss had risen at the end while the training loss fell on."""
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
    """Whether good trials still gained in their last epoch, by more than noise.

    They are those that stood best before it: those that stand best after it are partly so by luck in it.
    """
    ends = []
    for trial in trials:
        whole = [epoch.accuracy for epoch in history_of(trial) if epoch.epoch == int(epoch.epoch)]
        if trial.state == TrialState.COMPLETE and len(whole) >= 2:
            ends.append((whole[-2], whole[-1]))
    gains = [last - before for before, last in sorted(ends, reverse=True)[:BEST_TRIALS]]
    if len(gains) < 3:
        return None
    gain = mean_change(gains)
    if gain is None or gain.low <= 0:
        return None
    return (
        f"The {len(gains)} trials that stood best before their last epoch still improved in it, by "
        f"{points(gain.mean)} points on average (95 % interval {points(gain.low)} to {points(gain.high)}): "
        "in a study of another `--name`, more epochs may help."
    )


MOST_TRIALS = 1000  # trials that a figure shows
MOST_CURVES = 300  # curves of one state
ALWAYS_DRAWN = 100  # trials that are always shown


def drawn_trials(trials: list[TrialRecord], most: int = MOST_TRIALS) -> list[TrialRecord]:
    """All of them, or the best complete ones and others evenly spread over the search, in their order."""
    if len(trials) <= most:
        return trials
    complete = [trial for trial in trials if trial.state == "complete" and trial.accuracy is not None]
    best = {trial.number for trial in heapq.nlargest(ALWAYS_DRAWN, complete, key=lambda trial: trial.accuracy or 0.0)}
    others = [trial for trial in trials if trial.number not in best]
    kept = most - len(best)
    spread = {others[place * len(others) // kept].number for place in range(kept)}
    return [trial for trial in trials if trial.number in best | spread]


def drawn_curves(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Of each state those whose intermediate values are drawn."""
    states = dict.fromkeys(trial.state for trial in trials)
    return [
        trial
        for state in states
        for trial in drawn_trials([each for each in trials if each.state == state and each.curve], MOST_CURVES)
    ]
