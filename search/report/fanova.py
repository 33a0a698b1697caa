"""fANOVA (Hutter et al., 2014): the share of the accuracy's variance that each hyperparameter explains alone.

The shares are those of Optuna's `FanovaImportanceEvaluator`, which walks every tree in Python for every interval of
every hyperparameter. Here a tree is an array of boxes, its leaves, which takes a third of the time: bootstrap
intervals need hundreds of trees.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial

Array = np.ndarray[Any, np.dtype[Any]]


def fanova(trials: Sequence[FrozenTrial], trees: int, seed: int) -> dict[str, float]:
    """The share of each hyperparameter that all trials have, as a mean over a forest; they sum to 1 or less.

    Args:
        trials: at least two, with different values.
    """
    space = intersection_search_space(list(trials))
    searched = {name: each for name, each in sorted(space.items()) if not each.single()}
    if not searched:
        return dict.fromkeys(space, 0.0)
    encoded = [list(_columns(name, each, trials)) for name, each in searched.items()]
    bounds = np.array([ends for columns in encoded for _, ends in columns])
    x = np.array([values for columns in encoded for values, _ in columns]).T
    forest = _forest(x, np.array([trial.value for trial in trials]), trees, seed)
    ends = np.cumsum([len(columns) for columns in encoded])
    parts = np.split(np.arange(len(bounds)), ends[:-1])
    shares = np.array([found for tree in forest if (found := _tree_shares(tree, bounds, parts))])
    means = shares.mean(axis=0) if len(shares) else np.zeros(len(searched))
    return dict.fromkeys(space, 0.0) | dict(zip(searched, means.tolist(), strict=True))


def _columns(
    name: str, distribution: BaseDistribution, trials: Sequence[FrozenTrial]
) -> Iterator[tuple[list[float], tuple[float, float]]]:
    # Values and range of each encoded column: one per choice, or the number itself.
    values = [trial.params[name] for trial in trials]
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            yield [float(value == choice) for value in values], (0.0, 1.0)
    else:
        yield values, (distribution.low, distribution.high)  # type: ignore[attr-defined]


def _forest(x: Array, y: Array, trees: int, seed: int) -> Iterator[Any]:
    """The trees of scikit-learn's `RandomForestRegressor`, whose own checks and copies take longer than the trees."""
    from sklearn.tree import DecisionTreeRegressor  # importing it takes a second

    x = x.astype(np.float32)
    for each in np.random.RandomState(seed).randint(np.iinfo(np.int32).max, size=trees):
        drawn = np.random.RandomState(each).randint(len(y), size=len(y), dtype=np.int32)
        counts = np.bincount(drawn, minlength=len(y)).astype(float)
        yield DecisionTreeRegressor(random_state=each).fit(x, y, sample_weight=counts, check_input=False).tree_


def _tree_shares(tree: Any, bounds: Array, parts: list[Array]) -> list[float]:
    """Variance of the marginal mean over each part of the columns, as a share of the tree's; empty for a constant tree.

    Args:
        tree: of scikit-learn.
        bounds: (columns, 2) the range of each column.
    """
    low, high = _boxes(tree, bounds)
    leaves = tree.feature < 0
    low, high, values = low[leaves], high[leaves], tree.value[leaves, 0, 0]
    total = _variance(values, (high - low).prod(axis=1))
    if not total > 0:
        return []
    return [_marginal_variance(low, high, values, part) / total for part in parts]


def _boxes(tree: Any, bounds: Array) -> tuple[Array, Array]:
    """Lower and upper corners of all nodes, (nodes, columns) each."""
    low, high = (np.tile(ends, (tree.node_count, 1)) for ends in bounds.T)
    rows = zip(tree.feature.tolist(), tree.threshold.tolist(), tree.children_left, tree.children_right, strict=True)
    for node, (column, threshold, left, right) in enumerate(rows):  # parents come before their children
        if column >= 0:
            low[left] = low[right] = low[node]
            high[left] = high[right] = high[node]
            high[left, column] = low[right, column] = threshold
    return low, high


def _marginal_variance(low: Array, high: Array, values: Array, part: Array) -> float:
    """Variance over the columns in `part` of the mean over all others."""
    edges = [np.unique(np.concatenate([low[:, column], high[:, column]])) for column in part]
    middles = _product([(each[1:] + each[:-1]) / 2 for each in edges])
    sizes = _product([np.diff(each) for each in edges]).prod(axis=1)
    inside = ((low[:, part] <= middles[:, None]) & (middles[:, None] <= high[:, part])).all(axis=2)  # (cells, leaves)
    others = np.delete(high - low, part, axis=1).prod(axis=1)
    weights = inside * others
    return _variance(weights @ values / weights.sum(axis=1), weights.sum(axis=1) * sizes)


def _product(axes: list[Array]) -> Array:
    return np.stack([each.ravel() for each in np.meshgrid(*axes, indexing="ij")], axis=1)


def _variance(values: Array, weights: Array) -> float:
    return float(np.average((values - np.average(values, weights=weights)) ** 2, weights=weights))
