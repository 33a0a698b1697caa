"""Configurations ranked by the mean of their trainings, and intervals of means, differences and shares."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from optuna.trial import FrozenTrial, TrialState

from search.formatting import assignments, marked
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import reason_of, saved_of
from search.study.space import Point

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values. deviation, low, high: None where one value tells nothing of them."""

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """A difference of two means and its interval."""

    mean: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds zero."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Share:
    """A share of hits in `n`, and its interval."""

    hits: int
    n: int
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its interval by the t distribution.

    Raises:
        ValueError: there are none.
    """
    n, mean = len(values), fmean(values)
    if n == 1:
        return Estimate(n, mean, None, None, None)
    deviation = stdev(values)
    margin = _t(CONFIDENCE, n - 1) * deviation / math.sqrt(n)
    return Estimate(n, mean, deviation, mean - margin, mean + margin)


def difference(first: Sequence[float], second: Sequence[float], comparisons: int = 1) -> Difference | None:
    """The mean of the first values less that of the second, with its interval by Welch (1947).

    Args:
        comparisons: made together; each interval is so much wider that all of them hold
            together with the stated confidence (Bonferroni).

    Returns:
        None where one of the two has fewer than two values.
    """
    if min(len(first), len(second)) < 2:
        return None
    mean = fmean(first) - fmean(second)
    parts = [stdev(values) ** 2 / len(values) for values in (first, second)]
    if sum(parts) == 0:
        return Difference(mean, mean, mean)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    margin = _t(1 - (1 - CONFIDENCE) / comparisons, freedom) * math.sqrt(sum(parts))
    return Difference(mean, mean - margin, mean + margin)


def share(hits: int, n: int) -> Share:
    """A share of n trials, n > 0, with its interval by Wilson (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Share(hits, n, float(interval.low), float(interval.high))


def _t(confidence: float, freedom: float) -> float:
    """The quantile of Student's t distribution that bounds a two-sided interval."""
    from scipy.special import stdtrit  # scipy.stats has it too, and takes half a second to import

    return float(stdtrit(freedom, (1 + confidence) / 2))


FEW = 2  # parameters that are all named


@dataclass(frozen=True)
class Configuration:
    """One configuration and its complete trials.

    changes: what of `params` differs from the default. trials, accuracies: their numbers and what they came
    to. seconds: that a training took, on average. behind: how far it is behind the best, None for that
    itself. gain: what it gains on the default, None for that itself. Both have intervals that are corrected
    for comparing all of them, and are None where one of the two has a single training. diverged, pruned: its
    trainings that came to no accuracy; of a study without repetitions pruned ones are not counted. mark: whether it
    is the default, or which of the study's starting points.
    """

    params: Point
    changes: Point
    trials: list[int]
    accuracies: list[float]
    accuracy: Estimate
    seconds: float
    behind: Difference | None
    gain: Difference | None
    diverged: int = 0
    pruned: int = 0
    mark: str | None = None

    @property
    def finished(self) -> int:
        """All its trainings."""
        return self.accuracy.n + self.diverged + self.pruned

    @property
    def whole(self) -> bool:
        """Whether all its trainings came to an accuracy. Otherwise `accuracy` is that of those that went well."""
        return self.finished == self.accuracy.n

    @property
    def is_default(self) -> bool:
        return not self.changes

    @property
    def label(self) -> str:
        """The configuration in few words: of many parameters only those that differ from the default."""
        shown = self.params if len(self.params) <= FEW or self.is_default else self.changes
        return marked(assignments(shown), self.mark)


def diverged(trial: FrozenTrial) -> bool:
    """Whether a trial ended because its loss was no longer a number."""
    return (reason_of(trial) or "").startswith("diverged")


def left_behind(trials: Iterable[FrozenTrial]) -> list[float]:
    """By how much each pruned trial was behind the best one at its last report, in accuracy."""
    best: dict[int, float] = {}
    last = []
    for trial in trials:
        for step, accuracy in trial.intermediate_values.items():
            best[step] = max(best.get(step, 0.0), accuracy)
        if trial.state == TrialState.PRUNED and trial.last_step is not None and not diverged(trial):
            last.append((trial.last_step, trial.intermediate_values[trial.last_step]))
    return [best[step] - accuracy for step, accuracy in last]


def by_configuration(trials: Iterable[FrozenTrial]) -> dict[space.Key, list[FrozenTrial]]:
    """The complete trials of each configuration, in order."""
    found: dict[space.Key, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            found.setdefault(space.key(trial.params), []).append(trial)
    return found


def accuracies_of(trials: list[FrozenTrial]) -> list[float]:
    """The values of complete trials."""
    return [trial.value for trial in trials if trial.value is not None]


def rank(definition: StudyDefinition, trials: Iterable[FrozenTrial]) -> list[Configuration]:
    """The configurations of complete trials, the best mean first.

    Those of which a training diverged come after all others: their mean is over the trainings that went well.
    Likewise those of which one was pruned, in a study that trains each several times. (Elsewhere a configuration
    comes up twice by chance, and one that was pruned the second time may still be the best.)
    """
    trials = list(trials)
    found = by_configuration(trials)
    cut = [trial for trial in trials if trial.state == TrialState.PRUNED]
    lost = Counter(space.key(trial.params) for trial in cut if diverged(trial))
    pruned = Counter(space.key(trial.params) for trial in cut if definition.seeds > 1 and not diverged(trial))
    values = {key: accuracies_of(of_one) for key, of_one in found.items()}
    ranked = sorted(found, key=lambda key: (lost[key] + pruned[key] > 0, -fmean(values[key])))
    default, marks = space.key(space.default_point(definition)), space.marks(definition)
    defaults = definition.default_values
    others = max(1, len(ranked) - 1)
    return [
        Configuration(
            params=found[key][0].params,
            changes={name: value for name, value in key if value != defaults.get(name)},
            trials=[trial.number for trial in found[key]],
            accuracies=values[key],
            accuracy=estimate(values[key]),
            seconds=fmean(saved.seconds if (saved := saved_of(trial)) else 0.0 for trial in found[key]),
            behind=None if key == ranked[0] else difference(values[ranked[0]], values[key], others),
            gain=None if key == default else difference(values[key], values.get(default, []), others),
            diverged=lost[key],
            pruned=pruned[key],
            mark=marks.get(key),
        )
        for key in ranked
    ]
