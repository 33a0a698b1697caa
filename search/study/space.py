"""Optuna's distributions of a study's hyperparameters, and points that need no history.

Samplers that need no history (grid, random, qmc) are points of the unit cube, so the
n-th trial's parameters are known when its ticket is made.
"""

import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fmnist.hyperparameters import Hyperparameters
from fmnist.seeds import derive
from search.formatting import written
from search.study.definition import DefinitionError, StudyDefinition
from search.study.parameters import Parameter, Space, applying, cases, point_of, points, walk
from search.study.parameters import Point as Point

Key = tuple[tuple[str, object], ...]


def distributions(definition: StudyDefinition) -> dict[str, BaseDistribution]:
    """What each hyperparameter is stored with, whatever the conditions: Optuna takes no second set of choices."""
    return {name: distribution(parameter) for name, parameter in definition.ranges.items()}


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's distribution of a table of values."""
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    low, high = parameter.range
    if parameter.whole:
        return IntDistribution(int(low), int(high), log=parameter.log, step=int(parameter.step or 1))
    return FloatDistribution(low, high, log=parameter.log, step=parameter.step)


def hyperparameters_of(definition: StudyDefinition, point: Point) -> Hyperparameters:
    """What is trained at a point; what it does not name is the default."""
    return definition.defaults.with_values(point)


def training_seed(definition: StudyDefinition, number: int) -> int:
    """The seed of a trial's training: no two trials of a study share it."""
    return derive(definition.seed, "training", number)


def default_point(definition: StudyDefinition) -> Point:
    """The searched values of the default configuration."""
    return with_defaults(definition, {})


def with_defaults(definition: StudyDefinition, values: Mapping[str, Any]) -> Point:
    """The point of the default configuration with other values; what is searched there without one is left open."""
    return point_of(definition.space, {**definition.default_values, **values})


def marks(definition: StudyDefinition) -> dict[Key, str]:
    """The points that a study file names, by their keys: default, start 1, start 2."""
    points = [with_defaults(definition, values) for values in ({}, *definition.start)]
    return {key(point): f"start {number}" if number else "default" for number, point in enumerate(points)}


MOST_EXTREMES = 64


def extremes(definition: StudyDefinition, without: Collection[str]) -> list[Point]:
    """What differs from the default where one hyperparameter has an end of its values, and its conditions hold.

    Args:
        without: hyperparameters that are left as they are.
    """
    defaults, found = definition.default_values, dict[Key, Point]()
    for conditions, applied in cases(definition.space):
        ends = [
            (name, end)
            for name, numbers in applied.items()
            if name not in without
            for number in numbers
            for end in definition.space[name][number].ends()
        ]
        for name, end in ends:
            point = with_defaults(definition, {**conditions, name: end})
            changes = {each: value for each, value in point.items() if value != defaults[each] and each not in without}
            found.setdefault(key(changes), changes)
            if len(found) > MOST_EXTREMES:
                break
    return [changes for changes in found.values() if changes][:MOST_EXTREMES]


def grid(definition: StudyDefinition) -> list[Point]:
    """Every configuration of a grid once, the default first if it is one of them."""
    default = default_point(definition)
    combined: Iterable[Point] = points(definition.space)
    if definition.grid:
        combined = (
            with_defaults(definition, dict(zip(part, values, strict=True)))
            for part in definition.grid
            for values in itertools.product(*part.values())
        )
    once = list({key(point): point for point in combined}.values())
    return sorted(once, key=lambda point: point != default)


def key(point: Point) -> Key:
    """What tells two points apart, whatever the order of their parameters."""
    return tuple(sorted(point.items()))


def random_point(space: Space, seed: int, index: int, fixed: Point) -> Point:
    """The index-th of a sequence of independent uniform points.

    Args:
        fixed: values that are not drawn.
    """
    return _from_unit(space, np.random.default_rng([seed, index]).random(_dimensions(space)).tolist(), fixed)


def quasi_random_point(space: Space, seed: int, index: int, fixed: Point) -> Point:
    """The index-th point of a scrambled Sobol sequence (Owen, 1998), as scipy makes it; `fixed` as above."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(_dimensions(space), scramble=True, rng=seed)
    if index:  # scipy cannot skip none
        sequence.fast_forward(index)
    return _from_unit(space, sequence.random(1)[0].tolist(), fixed)


def _dimensions(space: Space) -> int:
    return sum(map(len, space.values()))


def _from_unit(space: Space, unit: list[float], fixed: Point) -> Point:
    """Each table has a coordinate of its own, so that what applies at a point is uniform whatever the conditions."""
    tables = [table for of_one in space.values() for table in of_one]
    coordinates = {id(table): u for table, u in zip(tables, unit, strict=True)}

    def choose(name: str, table: Parameter) -> Any:
        return fixed[name] if name in fixed else _value_at(table, coordinates[id(table)])

    return walk(space, choose)


def _value_at(table: Parameter, u: float) -> Any:
    """The u-th quantile, u in [0, 1)."""
    if table.choices is None and table.step is None:
        low, high = table.range
        if table.whole and table.log:
            ends = math.log(low - 0.5), math.log(high + 0.5)
            return min(max(round(math.exp(ends[0] + u * (ends[1] - ends[0]))), int(low)), int(high))
        if not table.whole and table.log:
            return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        if not table.whole:
            return low + u * (high - low)
    values = table.values()
    return values[int(u * len(values))]


def parse_assignments(definition: StudyDefinition, assignments: Iterable[str]) -> Point:
    """Searched hyperparameters and their values from texts NAME=VALUE.

    Raises:
        DefinitionError: the study does not search one of them, or not with that value beside the others.
    """
    texts: dict[str, str] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in definition.space:
            raise DefinitionError(
                f"--set {assignment}: the study searches {', '.join(definition.space)}; write one of them as NAME=VALUE"
            )
        if name in texts:
            raise DefinitionError(f"--set {assignment}: {name} is set twice; keep one of them")
        texts[name] = text
    fixed = {name: _parse(definition, name, text) for name, text in texts.items()}
    there = walk(definition.space, lambda name, _: fixed.get(name))
    for name in fixed:
        given = f"--set {name}={texts[name]}: {name}"
        if name not in there:
            tables = definition.space[name]
            where = " or where ".join(table.condition for table in tables)
            set_too = "change that" if all(table.when.keys() <= fixed.keys() for table in tables) else "set that too"
            raise DefinitionError(f"{given} is searched only where {where}; {set_too}, or leave it out")
        table = applying(definition.space, name, fixed)
        assert table is not None  # else it would not be there
        if not table.has(fixed[name]):
            raise DefinitionError(f"{given} is searched in {table.words}; change it")
    return fixed


def _parse(definition: StudyDefinition, name: str, text: str) -> Any:
    searched = definition.ranges[name]
    if not searched.ordered:
        chosen = {written(choice): choice for choice in searched.values()}
        if text not in chosen:
            raise DefinitionError(f"--set {name}={text}: {name} is searched in {searched.words}; change it")
        return chosen[text]
    whole = searched.whole and searched.choices is None
    try:
        value = int(text) if whole else float(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise DefinitionError(f"--set {name}={text}: {name} is {kind}; change it") from None
    # A choice as it is stored: 1 for 1.0.
    return next((choice for choice in searched.choices or () if choice == value), value)
