import numpy as np
import pytest
from scipy import stats

from search.results.ranking import difference, estimate, share


def test_an_estimate_is_scipys_t_interval() -> None:
    values = [0.91, 0.92, 0.905, 0.93]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.n, found.mean) == (4, pytest.approx(np.mean(values)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    found = estimate([0.9])
    assert (found.mean, found.deviation, found.low, found.high) == (0.9, None, None, None)
    with pytest.raises(ValueError):
        estimate([])


@pytest.mark.parametrize("comparisons", [1, 3, 18])
def test_a_difference_is_scipys_welch_interval_at_the_corrected_level(comparisons: int) -> None:
    first, second = [0.91, 0.92, 0.905, 0.93], [0.90, 0.90, 0.91]
    found = difference(first, second, comparisons)
    assert found is not None
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(1 - 0.05 / comparisons)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second))


def test_a_difference_is_noise_where_its_interval_holds_zero() -> None:
    apart, near = difference([0.95, 0.951, 0.952], [0.9, 0.901, 0.902]), difference([0.91, 0.93], [0.9, 0.94])
    assert apart is not None
    assert near is not None
    assert not apart.is_noise
    assert near.is_noise
    assert difference([0.9], [0.91, 0.92]) is None
    same = difference([0.9, 0.9], [0.9, 0.9])
    assert same is not None
    assert same.is_noise


def test_corrected_intervals_hold_together_as_often_as_they_say() -> None:
    """Ten equal groups against the first: all nine intervals hold zero in about 95 of 100 draws, or more."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        groups = draw.normal(0.9, 0.002, size=(10, 5)).tolist()
        found = [difference(groups[0], other, 9) for other in groups[1:]]
        held += all(each is not None and each.is_noise for each in found)
    assert held / 400 > 0.93


def test_a_share_is_wilsons() -> None:
    found = share(2, 12)
    p, n, z = 2 / 12, 12, stats.norm.ppf(0.975)
    centre, margin = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.hits, found.n) == (2, 12)
    assert found.low == pytest.approx((centre - margin) / (1 + z**2 / n))
    assert found.high == pytest.approx((centre + margin) / (1 + z**2 / n))
    assert share(0, 10).low == pytest.approx(0, abs=1e-12)
