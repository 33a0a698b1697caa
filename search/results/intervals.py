"""Intervals of means of repeated trainings, of their differences, and of shares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist, fmean, median, stdev, variance

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
UNALIKE = 0.1  # level of Bartlett's test below which deviations are not pooled as if they were one
SMALLEST = 0.05  # of the median variance: a smaller one is an accident of few seeds, or of scores that are counts
NODES = 96  # of a Gauss-Legendre rule


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values within 0 and 1.

    deviation: of these values alone; None of a single one. low, high: None where nothing tells how values vary.
    """

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


@dataclass(frozen=True)
class _Spread:
    """The variance of single values of a group, and its degrees of freedom."""

    variance: float
    freedom: float


class Pooled:
    """Groups of repeated trainings, whose few values each are not enough to tell how much they vary.

    Their variance is pooled over all groups. Where Bartlett's test (1937) finds that variances differ, their logarithms
    are only shrunk towards each other, by the share of their spread that chance explains (Cui et al., Biostatistics
    2005): one group with a wild training does not widen the intervals of the others. A group of one value has no
    interval, as nothing shows whether it is as stable as the others. Nor has any group if no two values of a group
    differ.

    Differences have the intervals of Tukey (1953), for groups of unequal size by Kramer (1956). They hold together for
    all pairs of groups, so one of the pair may be chosen for having the best mean.
    """

    def __init__(self, groups: Sequence[Sequence[float]]) -> None:
        self._groups = groups
        self._spreads = _spreads(groups)

    def estimate(self, index: int) -> Estimate:
        """The mean of a group, with its interval by the t distribution: it holds for that group by itself.

        Raises:
            ValueError: the group is empty.
        """
        values, spread = self._groups[index], self._spreads[index]
        n, mean = len(values), fmean(values)
        deviation = stdev(values) if n > 1 else None
        if spread is None:
            return Estimate(n, mean, deviation, None, None)
        margin = _t(spread.freedom) * math.sqrt(spread.variance / n)
        # A mean of shares is a share: near an end, t would reach beyond what can be.
        return Estimate(n, mean, deviation, max(0.0, mean - margin), min(1.0, mean + margin))

    def difference(self, first: int, second: int) -> Difference | None:
        """The mean of the first group less that of the second; None where one of them has no interval."""
        one, other = self._spreads[first], self._spreads[second]
        if one is None or other is None:
            return None
        ours, theirs = self._groups[first], self._groups[second]
        error = math.sqrt((one.variance / len(ours) + other.variance / len(theirs)) / 2)
        # The fewer degrees of freedom of the two: Satterthwaite's would need a quantile for each pair.
        margin = studentized_range(len(self._groups), min(one.freedom, other.freedom)) * error
        mean = fmean(ours) - fmean(theirs)
        return Difference(mean, mean - margin, mean + margin)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values within 0 and 1, with its interval by their own deviation.

    Raises:
        ValueError: there are none.
    """
    return Pooled([values]).estimate(0)


def mean_change(changes: Sequence[float]) -> Difference | None:
    """The mean of differences of pairs, with its interval by their own deviation; None where nothing tells that."""
    spread = _spreads([changes])[0]
    if spread is None:
        return None
    mean, margin = fmean(changes), _t(spread.freedom) * math.sqrt(spread.variance / len(changes))
    return Difference(mean, mean - margin, mean + margin)


def share(hits: int, n: int) -> Share:
    """A share of n trials, n > 0, with its interval by Wilson (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Share(hits, n, float(interval.low), float(interval.high))


def sampling_margin(accuracy: float, images: int) -> float:
    """Half the interval of an accuracy over samples of so many images, by the normal approximation."""
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(accuracy * (1 - accuracy) / images)


def _spreads(groups: Sequence[Sequence[float]]) -> list[_Spread | None]:
    """That of each group; None where it is unknown."""
    own = [_Spread(variance(values), len(values) - 1) if len(values) > 1 else None for values in groups]
    known = [each for each in own if each]
    freedom = sum(each.freedom for each in known)
    pooled = sum(each.freedom * each.variance for each in known) / freedom if freedom else 0.0
    if pooled == 0:
        return [None] * len(groups)
    floor = SMALLEST * median(each.variance for each in known if each.variance)
    floored = [each and replace(each, variance=max(each.variance, floor)) for each in own]
    chance = _explained_by_chance([each for each in floored if each], pooled)
    if chance == 1:
        return [each and _Spread(pooled, freedom) for each in own]
    centre = sum(each.freedom * _log_variance(each) for each in floored if each) / freedom
    return [
        each
        and _Spread(
            math.exp(chance * centre + (1 - chance) * _log_variance(each)),
            min(freedom, each.freedom / (1 - chance)),
        )
        for each in floored
    ]


def _log_variance(spread: _Spread) -> float:
    """The logarithm of a variance without its bias: that of few values is on average too low."""
    from scipy.special import psi

    half = spread.freedom / 2
    return math.log(spread.variance) - float(psi(half)) + math.log(half)


def _explained_by_chance(spreads: list[_Spread], pooled: float) -> float:
    """The share of the spread among variances that chance explains; 1 where Bartlett's test finds no more than that."""
    from scipy.special import chdtrc

    others = len(spreads) - 1
    if not others:
        return 1.0
    freedom = sum(each.freedom for each in spreads)
    logs = sum(each.freedom * math.log(each.variance / pooled) for each in spreads)
    correction = 1 + (sum(1 / each.freedom for each in spreads) - 1 / freedom) / (3 * others)
    statistic = -logs / correction  # of a chi-squared distribution, with a mean of `others`, if all are alike
    return others / statistic if chdtrc(others, statistic) < UNALIKE else 1.0


def _t(freedom: float) -> float:
    """The quantile of Student's t distribution that bounds a two-sided interval."""
    from scipy.special import stdtrit  # scipy.stats has it too, and takes half a second to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@lru_cache(maxsize=1024)  # a status that is watched asks for the same again
def studentized_range(groups: int, freedom: float) -> float:
    """The quantile of Tukey's studentized range of so many groups, within 0.3 % for up to 300 of them.

    scipy.stats.studentized_range has it too, and takes 0.2 s for each besides half a second to import.
    """
    low, high = 2.5, 1e3  # of two groups and no doubt about the deviation it is 2.77
    for _ in range(17):
        middle = math.sqrt(low * high)
        if _probability(middle, groups, freedom) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _probability(width: float, groups: int, freedom: float) -> float:
    """That the range of so many normal values is below `width` times a deviation estimated independently of them.

    The probability given the estimate, k int phi(z) (Phi(z) - Phi(z - w s))^(k-1) dz, is averaged over its logarithm,
    in which both factors are smooth even for a single degree of freedom.
    """
    from scipy.special import gammaincinv, gammaln, ndtr

    nodes, weights = _rule()
    half = freedom / 2
    low, high = (0.5 * math.log(gammaincinv(half, end) / half) for end in (1e-7, 1 - 1e-9))
    log_s = (high - low) / 2 * nodes + (high + low) / 2
    density = np.exp(math.log(2) + half * math.log(half) - gammaln(half) + freedom * log_s - half * np.exp(2 * log_s))
    z = 8 * nodes  # beyond 8 deviations nothing is left
    inside = (ndtr(z) - ndtr(z - width * np.exp(log_s)[:, None])) ** (groups - 1)
    ranges = groups * 8 * (inside * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)) @ weights
    return float((high - low) / 2 * (weights * density) @ ranges)


@lru_cache(maxsize=1)
def _rule() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(NODES)
