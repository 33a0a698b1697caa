"""Accuracy over the search space: where each value lies on its axis, and the mean over two hyperparameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from search.report.importance import Importances
from search.study.definition import Parameter, StudyDefinition
from search.study.space import distributions, values_of

FEWEST = 10  # complete trials below which a mean over two hyperparameters shows noise
SIDE = 25  # points of the grid along a range
WIDTH = 0.08  # of a range: the deviation of the kernel, in which trials count as near
NEAR = 2.0  # deviations within which there must be a trial


@dataclass(frozen=True)
class Landscape:
    """The mean accuracy of the complete trials near each point of a grid of two hyperparameters.

    It is that of Nadaraya and Watson (1964). x, y: their names. xs, ys: their values on the grid. z: a row
    for each of ys; None where no trial is near. points: (x, y) of the trials.
    """

    x: str
    y: str
    xs: list[Any]
    ys: list[Any]
    z: list[list[float | None]]
    points: list[tuple[Any, Any]]


def position(parameter: Parameter, value: Any) -> float:
    """Where a value lies on its axis, from 0 to 1; choices lie evenly, in the order of their values."""
    if parameter.choices is not None:
        places = ordered(parameter.choices)
        return places.index(value) / max(1, len(places) - 1)
    assert parameter.low is not None  # it is a range
    assert parameter.high is not None
    if parameter.log:
        return math.log(value / parameter.low) / math.log(parameter.high / parameter.low)
    return float((value - parameter.low) / (parameter.high - parameter.low))


def ordered(choices: list[Any]) -> list[Any]:
    """Choices in the order of an axis: numbers by size, others as they are given."""
    return sorted(choices) if all(isinstance(choice, int | float) for choice in choices) else choices


def foremost(space: Mapping[str, Parameter], importances: Importances | None) -> list[str]:
    """The two most important hyperparameters; all of a space of two; none where importance is not known."""
    if len(space) == 2:
        return list(space)
    shares = importances and (importances.fanova or importances.ped_anova)
    return sorted(shares, key=lambda name: shares[name].share, reverse=True)[:2] if shares else []


def landscape(definition: StudyDefinition, names: list[str], trials: list[FrozenTrial]) -> Landscape | None:
    """The mean accuracy over the two hyperparameters of these names; None where there are too few complete trials."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    if len(names) < 2 or len(complete) < FEWEST:
        return None
    space, kinds = definition.space, distributions(definition)
    grids = [_grid(space[name], kinds[name]) for name in names]
    places = [np.array([_place(space[name], trial.params[name]) for trial in complete]) for name in names]
    axes = [np.array([_place(space[name], value) for value in grid]) for name, grid in zip(names, grids, strict=True)]
    squares = [(axis[:, None] - place) ** 2 for axis, place in zip(axes, places, strict=True)]
    distance = squares[0][None, :, :] + squares[1][:, None, :]  # (ys, xs, trials)
    weights = np.exp(-distance / (2 * WIDTH**2))
    means = weights @ np.array([trial.value for trial in complete]) / np.maximum(weights.sum(axis=2), 1e-300)
    near = distance.min(axis=2) <= (NEAR * WIDTH) ** 2
    return Landscape(
        x=names[0],
        y=names[1],
        xs=grids[0],
        ys=grids[1],
        z=[
            [mean if known else None for mean, known in zip(row, row_near, strict=True)]
            for row, row_near in zip(means.tolist(), near.tolist(), strict=True)
        ],
        points=[(trial.params[names[0]], trial.params[names[1]]) for trial in complete],
    )


def _place(parameter: Parameter, value: Any) -> float:
    """A value's position, or for choices its place in their order: they are not near each other."""
    if parameter.choices is not None:
        return float(ordered(parameter.choices).index(value))
    return position(parameter, value)


def _grid(parameter: Parameter, distribution: BaseDistribution) -> list[Any]:
    """Values along an axis: all that there are, or evenly spaced ones of a range that has too many."""
    if parameter.choices is not None:
        return ordered(parameter.choices)
    assert parameter.low is not None  # it is a range
    assert parameter.high is not None
    if not parameter.continuous or isinstance(distribution, IntDistribution):
        values = values_of(distribution)
        if len(values) <= SIDE:
            return values
    spaced = np.geomspace if parameter.log else np.linspace
    return [float(value) for value in spaced(parameter.low, parameter.high, SIDE)]
