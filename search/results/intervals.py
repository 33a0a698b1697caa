"""Confidence intervals of means over seeds, of their differences, and of proportions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist, fmean, median, stdev, variance

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
UNALIKE = 0.1  # p-value of Bartlett's test below which variances are only partially pooled
SMALLEST = 0.05  # of the median variance: smaller ones are due to few seeds, or to scores being counts
NODES = 96  # of the Gauss-Legendre rule


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values within 0 and 1.

    deviation: standard deviation of these values alone; None for a single value. low, high: None if the variance is
    unknown.
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
        """Whether the interval contains zero."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Share:
    """A proportion of hits in `n`, and its interval."""

    hits: int
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class _Spread:
    """The variance within a group, and its degrees of freedom."""

    variance: float
    freedom: float


class Pooled:
    """Groups of scores with too few values each to estimate their own variance.

    The variance is pooled over all groups. Where Bartlett's test (1937) finds that variances differ, their logarithms
    are only shrunk towards each other, by the share of their spread that chance explains (Cui et al., Biostatistics
    2005): one group with an outlier does not widen the intervals of the others. A group of one value has no interval,
    as it may be less stable than the others. No group has one if the values within each group are equal.

    Differences have the intervals of Tukey (1953), extended to unequal group sizes by Kramer (1956). They hold
    simultaneously for all pairs, so one of the pair may be selected for its mean.
    """

    def __init__(self, groups: Sequence[Sequence[float]]) -> None:
        self._groups = groups
        self._spreads = _spreads(groups)

    def estimate(self, index: int) -> Estimate:
        """The mean of a group with its t interval, not corrected for multiple comparisons.

        Raises:
            ValueError: the group is empty.
        """
        values, spread = self._groups[index], self._spreads[index]
        n, mean = len(values), fmean(values)
        deviation = stdev(values) if n > 1 else None
        if spread is None:
            return Estimate(n, mean, deviation, None, None)
        margin = _t(spread.freedom) * math.sqrt(spread.variance / n)
        # Accuracies lie within 0 and 1; near the ends the t interval would exceed them.
        return Estimate(n, mean, deviation, max(0.0, mean - margin), min(1.0, mean + margin))

    def difference(self, first: int, second: int) -> Difference | None:
        """Mean of the first group minus that of the second; None if one of them has no interval."""
        one, other = self._spreads[first], self._spreads[second]
        if one is None or other is None:
            return None
        values, others = self._groups[first], self._groups[second]
        error = math.sqrt((one.variance / len(values) + other.variance / len(others)) / 2)
        # The smaller degrees of freedom: Satterthwaite's would need a separate quantile for each pair.
        margin = studentized_range(len(self._groups), min(one.freedom, other.freedom)) * error
        mean = fmean(values) - fmean(others)
        return Difference(mean, mean - margin, mean + margin)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values within 0 and 1, with an interval from their own deviation.

    Raises:
        ValueError: `values` is empty.
    """
    return Pooled([values]).estimate(0)


def mean_change(changes: Sequence[float]) -> Difference | None:
    """The mean of paired differences with an interval from their own deviation; None if that is unknown or zero."""
    spread = _spreads([changes])[0]
    if spread is None:
        return None
    mean, margin = fmean(changes), _t(spread.freedom) * math.sqrt(spread.variance / len(changes))
    return Difference(mean, mean - margin, mean + margin)


def overtaking_margin(groups: Sequence[Sequence[float]], values: int) -> float:
    """Distance from the best mean beyond which a group is unlikely to overtake it: the chance is about 2.5 %.

    The chance is that both means change enough when the groups, of equal size now, grow to `values` values. If all have
    the same true mean it is 4 %, because luck chose the best. Infinite if no values within a group differ.
    """
    spread, size = fmean(variance(group) for group in groups), len(groups[0])
    if spread == 0:
        return math.inf
    # Between `size` and `values` values, a mean changes with variance spread * (values - size) / (values * size).
    return _t(len(groups) * (size - 1)) * math.sqrt(2 * spread * (values - size) / (values * size))


def share(hits: int, n: int) -> Share:
    """The proportion of hits in n > 0 trials, with the interval of Wilson (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Share(hits, n, float(interval.low), float(interval.high))


def sampling_margin(accuracy: float, images: int) -> float:
    """Half-width of the interval of an accuracy over samples of `images` images (normal approximation)."""
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(accuracy * (1 - accuracy) / images)


def _spreads(groups: Sequence[Sequence[float]]) -> list[_Spread | None]:
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
    from scipy.special import psi

    # Corrected for bias: the log-variance of few values is on average too low.
    half = spread.freedom / 2
    return math.log(spread.variance) - float(psi(half)) + math.log(half)


def _explained_by_chance(spreads: list[_Spread], pooled: float) -> float:
    """Share of the spread among variances that chance explains; 1 if Bartlett's test finds no difference."""
    from scipy.special import chdtrc

    others = len(spreads) - 1
    if not others:
        return 1.0
    freedom = sum(each.freedom for each in spreads)
    logs = sum(each.freedom * math.log(each.variance / pooled) for each in spreads)
    correction = 1 + (sum(1 / each.freedom for each in spreads) - 1 / freedom) / (3 * others)
    statistic = -logs / correction  # chi-squared with mean `others` if all variances are equal
    return others / statistic if chdtrc(others, statistic) < UNALIKE else 1.0


def _t(freedom: float) -> float:
    from scipy.special import stdtrit  # importing scipy.stats would take half a second

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@lru_cache(maxsize=1024)  # `status --watch` needs the same values repeatedly
def studentized_range(groups: int, freedom: float) -> float:
    """Quantile of Tukey's studentized range, within 0.3 % for up to 300 groups.

    scipy.stats.studentized_range would take 0.2 s per value, and half a second to import.
    """
    low, high = 2.5, 1e3  # the smallest quantile, of two groups with a known deviation, is 2.77
    for _ in range(17):
        middle = math.sqrt(low * high)
        if _probability(middle, groups, freedom) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _probability(width: float, groups: int, freedom: float) -> float:
    """P(range of `groups` normal values < `width` times an independent estimate s of their deviation).

    The probability given s, k int phi(z) (Phi(z) - Phi(z - w s))^(k-1) dz, is integrated over log s, in which both
    factors are smooth even for one degree of freedom.
    """
    from scipy.special import gammaincinv, gammaln, ndtr

    nodes, weights = _rule()
    half = freedom / 2
    low, high = (0.5 * math.log(gammaincinv(half, end) / half) for end in (1e-7, 1 - 1e-9))
    log_s = (high - low) / 2 * nodes + (high + low) / 2
    density = np.exp(math.log(2) + half * math.log(half) - gammaln(half) + freedom * log_s - half * np.exp(2 * log_s))
    z = 8 * nodes  # the mass beyond 8 deviations is negligible
    inside = (ndtr(z) - ndtr(z - width * np.exp(log_s)[:, None])) ** (groups - 1)
    ranges = groups * 8 * (inside * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)) @ weights
    return float((high - low) / 2 * (weights * density) @ ranges)


@lru_cache(maxsize=1)
def _rule() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(NODES)
