"""How sure a number is: intervals of means, of differences of means, and of shares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

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
