"""Decides which trial trains next: a paused one, a new one, or none.

After freeze-thaw optimization (Swersky, Snoek and Adams, 2014): every trial is paused early, the most promising one
resumes, and none ends before the search does. Their Gaussian process over learning curves is replaced by two
measured facts about the logarithm of the error. A trial's distance from the best one at the same step shrinks with the
0.3rd power of the share of its training that is done, and it varies like a random walk in the logarithm of the epochs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# Chosen with benchmarks/replay.py on learning curves of the default study; docs/log.md lists the alternatives.
SHRINKAGE = 0.3  # exponent of the finished share of a training, for its distance from the best trial
OPTIMISM = 0.045  # allowance for a paused trial, in the logarithm of the error, after 1/e of its training
CONTENDERS = 0.08  # share of a search's trials that must be complete, and unbeatable, before it ends


@dataclass(frozen=True)
class Progress:
    """A trial's progress.

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
    """Decide what a free worker trains.

    While there are tickets, a trial that leads at its step resumes, which shows samplers complete trials early;
    otherwise a new trial starts. After that the most promising trial resumes, until enough trials are complete whose
    accuracy no paused one may exceed.

    Args:
        best: highest accuracy of all trials at each reported step.
        complete: trials at their end.
        paused: trials that may resume, including the one that the worker has just trained.
        begun: number of trials of the search that have started.
        tickets: number of trials that have not.

    Returns:
        One of `paused`; "new" for a ticket; None if nothing is worth training.
    """
    ranked = sorted(paused, key=lambda trial: (promise(trial, best), trial.number))
    if tickets:
        return next((trial for trial in ranked if trial.accuracy >= best[trial.step]), "new")
    if not ranked or promise(ranked[0], best) > _bound(best, complete, begun):
        return None
    return ranked[0]


def _bound(best: Mapping[int, float], complete: Sequence[Progress], begun: int) -> float:
    # Distance of the last contender from the best trial; infinite while too few trials are complete.
    wanted = max(1, round(CONTENDERS * begun))
    ends = sorted(promise(trial, best) for trial in complete)
    return ends[wanted - 1] if len(ends) >= wanted else math.inf


def promise(trial: Progress, best: Mapping[int, float]) -> float:
    """Optimistic forecast of how far a trial's error ends above the lowest one, in logarithms; lower is better.

    For a complete trial, the distance itself.
    """
    return _behind(trial, best) - OPTIMISM * math.sqrt(math.log(trial.end / trial.step))


def expected(trial: Progress, best: Mapping[int, float]) -> float:
    """Forecast of a trial's accuracy at its end, without optimism."""
    return 1 - math.exp(_log_error(best[max(best)]) + _behind(trial, best))


def _behind(trial: Progress, best: Mapping[int, float]) -> float:
    left = trial.end / trial.step
    gap = _log_error(trial.accuracy) - _log_error(best[trial.step])
    at_end = best[max(step for step in best if step <= trial.end)]  # or at the last step that any trial reached
    short = _log_error(at_end) - _log_error(best[max(best)])
    return gap * float(left**-SHRINKAGE) + short


def _log_error(accuracy: float) -> float:
    return math.log(max(1 - accuracy, 1e-9))
