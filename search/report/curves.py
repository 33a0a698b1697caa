"""What the best trials' training curves say: whether they overfit, and whether they still improve."""

import math
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState

from fmnist.hyperparameters import ScoreOn
from search.formatting import percent, points
from search.results.ranking import estimate
from search.study.store import history_of

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
    gain = estimate(gains)
    if gain.low is None or gain.high is None or gain.low <= 0:
        return None
    return (
        f"The {len(gains)} trials that stood best before their last epoch still improved in it, by "
        f"{points(gain.mean)} points on average (95 % interval {points(gain.low)} to {points(gain.high)}): "
        "more epochs may help."
    )
