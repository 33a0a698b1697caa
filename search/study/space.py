"""The search space: from a definition's ranges to Optuna's distributions and to points.

Samplers that need no history (grid, random, qmc) are points of the unit cube, so the
n-th trial's parameters are known when its ticket is made.
"""

import itertools
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fmnist.hyperparameters import Hyperparameters
from search.database.optuna_schema import is_contained
from search.study.definition import DefinitionError, Parameter, StudyDefinition

Distributions = Mapping[str, BaseDistribution]
Point = dict[str, Any]


def distributions(definition: StudyDefinition) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each searched hyperparameter."""
    return {name: _distribution(name, parameter) for name, parameter in definition.space.items()}


def is_whole(name: str) -> bool:
    """Whether a hyperparameter takes whole numbers only."""
    return Hyperparameters.model_fields[name].annotation is int


def _distribution(name: str, parameter: Parameter) -> BaseDistribution:
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None  # the definition is validated
    assert parameter.high is not None
    if is_whole(name):
        return IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1)
        )
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def hyperparameters_of(definition: StudyDefinition, point: Point) -> Hyperparameters:
    """What is trained at a point; what it does not name is the default."""
    return definition.defaults.model_copy(update=point)


def default_point(definition: StudyDefinition) -> Point:
    """The searched values of the default configuration."""
    return {name: getattr(definition.defaults, name) for name in definition.space}


def grid(definition: StudyDefinition) -> list[Point]:
    """Every configuration of a grid once, the default first if it is one of them."""
    space = distributions(definition)
    defaults = default_point(definition)
    parts = definition.grid or [{name: values_of(distribution) for name, distribution in space.items()}]
    points = [
        defaults | dict(zip(part, values, strict=True))
        for part in parts
        for values in itertools.product(*part.values())
    ]
    once = list({key(point): point for point in points}.values())
    return sorted(once, key=lambda point: point != defaults)


def key(point: Point) -> tuple[tuple[str, object], ...]:
    """What tells two points apart, whatever the order of their parameters."""
    return tuple(sorted(point.items()))


def values_of(distribution: BaseDistribution) -> list[Any]:
    """All values of a distribution with finitely many, in order.

    Raises:
        ValueError: it is continuous.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        low, high, step = (Decimal(str(value)) for value in (distribution.low, distribution.high, distribution.step))
        return [float(low + i * step) for i in range(int((high - low) / step) + 1)]
    raise ValueError("a continuous range has no list of values")


def random_point(space: Distributions, seed: int, index: int) -> Point:
    """The index-th of a sequence of independent uniform points."""
    unit = np.random.default_rng([seed, index]).random(len(space))
    return _from_unit(space, unit.tolist())


def quasi_random_point(space: Distributions, seed: int, index: int) -> Point:
    """The index-th point of a scrambled Sobol sequence (Owen, 1998), as scipy makes it."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(len(space), scramble=True, rng=seed)
    if index:  # scipy cannot skip none
        sequence.fast_forward(index)
    return _from_unit(space, sequence.random(1)[0].tolist())


def _from_unit(space: Distributions, unit: list[float]) -> Point:
    return {name: _value_at(distribution, u) for (name, distribution), u in zip(space.items(), unit, strict=True)}


def _value_at(distribution: BaseDistribution, u: float) -> Any:
    """The u-th quantile, u in [0, 1)."""
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        low, high = distribution.low, distribution.high
        if distribution.log:
            return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        return low + u * (high - low)
    if isinstance(distribution, IntDistribution) and distribution.log:
        low, high = math.log(distribution.low - 0.5), math.log(distribution.high + 0.5)
        return min(max(round(math.exp(low + u * (high - low))), distribution.low), distribution.high)
    values = values_of(distribution)
    return values[int(u * len(values))]


def parse_assignment(definition: StudyDefinition, assignment: str) -> tuple[str, Any]:
    """A searched hyperparameter and its value from NAME=VALUE.

    Raises:
        DefinitionError: the study does not search it, or not with that value.
    """
    name, _, text = assignment.partition("=")
    space = distributions(definition)
    if name not in space:
        raise DefinitionError(
            f"--set {assignment}: the study searches {', '.join(space)}; write one of them as NAME=VALUE"
        )
    allowed = space[name]
    if isinstance(allowed, CategoricalDistribution):
        chosen = {str(choice): choice for choice in allowed.choices}
        if text not in chosen:
            raise DefinitionError(f"--set {assignment}: {name} is one of {', '.join(chosen)}")
        return name, chosen[text]
    assert isinstance(allowed, IntDistribution | FloatDistribution)
    whole = isinstance(allowed, IntDistribution)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise DefinitionError(f"--set {assignment}: {name} is a {'whole ' if whole else ''}number") from None
    if not is_contained(value, allowed):
        step = f" in steps of {allowed.step}" if allowed.step else ""
        raise DefinitionError(f"--set {assignment}: {name} is from {allowed.low} to {allowed.high}{step} in this study")
    return name, value
