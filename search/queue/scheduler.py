"""Which trial trains next: a paused one, a new one, or none.

After freeze-thaw optimization (Swersky, Snoek and Adams, 2014), where no trial is ended while others are trained: all
are paused early, and the one that promises most goes on. Their Gaussian process over curves is replaced by two measured
facts. Of the logarithm of the error, what parts a trial from the best one at its step shrinks with the 0.3rd power of
the training that is left, and wanders as a random walk does in the logarithm of the epochs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# Measured by benchmarks/replay.py on the learning curves of the default study; docs/log.md has what else was tried.
SHRINKAGE = 0.3  # exponent of the share of the training that is done, for the distance from the best
OPTIMISM = 0.045  # of the logarithm of the error, after one e-th of a training: what a paused trial is given
CONTENDERS = 0.08  # share of a search's trials that are trained to the end before it is over


@dataclass(frozen=True)
class Progress:
    """How far a trial has come.

    step: of its last report. accuracy: at that step, in [0, 1]. end: the step after its last epoch.
    """

    number: int
    step: int
    accuracy: float
    end: int

    @property
    def complete(self) -> bool:
        return self.step == self.end


def choose(
    best: Mapping[int, float], complete: Sequence[Progress], paused: Sequence[Progress], begun: int, tickets: int
) -> Progress | Literal["new"] | None:
    """Decide what a free worker does.

    A trial that leads at its step goes on, so that samplers learn of whole trainings early; then each ticket begins;
    then the trial that promises most goes on, until enough trials are complete that are better than any of them may
    become.

    Args:
        best: highest accuracy of all trials at each step that any has reported.
        complete: trials at their end.
        paused: those that may go on, with the one that the worker has just trained.
        begun: trials of the search that have begun, whatever became of them.
        tickets: trials that have not begun.

    Returns:
        One of `paused`; "new" for a ticket; None if nothing is left that is worth training.
    """
    ranked = sorted(paused, key=lambda trial: (promise(trial, best), trial.number))
    if tickets:
        return next((trial for trial in ranked if trial.accuracy >= best[trial.step]), "new")
    if not ranked or promise(ranked[0], best) > _bound(best, complete, begun):
        return None
    return ranked[0]


def _bound(best: Mapping[int, float], complete: Sequence[Progress], begun: int) -> float:
    """What the last of the contenders came to; infinite while they are too few."""
    wanted = max(1, round(CONTENDERS * begun))
    ends = sorted(promise(trial, best) for trial in complete)
    return ends[wanted - 1] if len(ends) >= wanted else math.inf


def promise(trial: Progress, best: Mapping[int, float]) -> float:
    """How far a trial's error may end above the least one of any trial, in logarithms: an optimistic guess.

    The less the better; of a complete trial how far it is above.
    """
    return _behind(trial, best) - OPTIMISM * math.sqrt(math.log(trial.end / trial.step))


def expected(trial: Progress, best: Mapping[int, float]) -> float:
    """The accuracy that a trial is expected to reach at its end."""
    return 1 - math.exp(_log_error(best[max(best)]) + _behind(trial, best))


def _behind(trial: Progress, best: Mapping[int, float]) -> float:
    left = trial.end / trial.step
    gap = _log_error(trial.accuracy) - _log_error(best[trial.step])
    at_end = best[max(step for step in best if step <= trial.end)]  # as far as any trial has come
    short = _log_error(at_end) - _log_error(best[max(best)])
    return gap * float(left**-SHRINKAGE) + short


def _log_error(accuracy: float) -> float:
    return math.log(max(1 - accuracy, 1e-9))
