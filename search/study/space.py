"""Optuna's distributions of a study's hyperparameters, and the points of samplers that ignore earlier trials.

Those samplers (grid, random, qmc) compute the parameters of the n-th trial from n alone, so its ticket contains them.
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
    """The distribution stored for each hyperparameter: one for all conditions, as Optuna rejects differing choices."""
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
    """The configuration to train at a point, with defaults for everything else."""
    return definition.defaults.with_values(point)


def training_seed(definition: StudyDefinition, number: int) -> int:
    """The seed of a trial's training, distinct for each trial of a study."""
    return derive(definition.seed, "training", number)


def default_point(definition: StudyDefinition) -> Point:
    """The searched values of the default configuration."""
    return with_defaults(definition, {})


def with_defaults(definition: StudyDefinition, values: Mapping[str, Any]) -> Point:
    """The default configuration's point with some values replaced; without searched hyperparameters that lack one."""
    return point_of(definition.space, {**definition.default_values, **values})


def marks(definition: StudyDefinition) -> dict[Key, str]:
    """Labels of the points that a study file names, by key: default, start 1, start 2, …"""
    points = [with_defaults(definition, values) for values in ({}, *definition.start)]
    return {key(point): f"start {number}" if number else "default" for number, point in enumerate(points)}


MOST_EXTREMES = 64


def extremes(definition: StudyDefinition, without: Collection[str]) -> list[Point]:
    """Changes to the default that set one hyperparameter to an end of its values, where its conditions hold.

    Args:
        without: hyperparameters that keep their defaults.
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
    """Each distinct configuration of a grid, the default first if the grid contains it."""
    default = default_point(definition)
    combined: Iterable[Point] = points(definition.space)
    if definition.grid:
        combined = (
            with_defaults(definition, dict(zip(part, values, strict=True)))
            for part in definition.grid
            for values in itertools.product(*part.values())
        )
    distinct = list({key(point): point for point in combined}.values())
    return sorted(distinct, key=lambda point: point != default)


def key(point: Point) -> Key:
    """A hashable form of a point, independent of the order of its parameters."""
    return tuple(sorted(point.items()))


def random_point(space: Space, seed: int, index: int, fixed: Point) -> Point:
    """The index-th of a sequence of independent uniform points.

    Args:
        fixed: values that are given instead of sampled.
    """
    return _from_unit(space, np.random.default_rng([seed, index]).random(_dimensions(space)).tolist(), fixed)


def quasi_random_point(space: Space, seed: int, index: int, fixed: Point) -> Point:
    """The index-th point of scipy's scrambled Sobol sequence (Owen, 1998); `fixed` as in `random_point`."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(_dimensions(space), scramble=True, rng=seed)
    if index:  # scipy rejects fast_forward(0)
        sequence.fast_forward(index)
    return _from_unit(space, sequence.random(1)[0].tolist(), fixed)


def _dimensions(space: Space) -> int:
    return sum(map(len, space.values()))


def _from_unit(space: Space, unit: list[float], fixed: Point) -> Point:
    # Each table has its own coordinate, so that values are uniform whichever tables apply.
    tables = [table for of_one in space.values() for table in of_one]
    coordinates = {id(table): u for table, u in zip(tables, unit, strict=True)}

    def choose(name: str, table: Parameter) -> Any:
        return fixed[name] if name in fixed else _value_at(table, coordinates[id(table)])

    return walk(space, choose)


def _value_at(table: Parameter, u: float) -> Any:
    # The u-quantile of a uniform distribution over the table, u in [0, 1).
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
    """Parse NAME=VALUE texts into values of searched hyperparameters.

    Raises:
        DefinitionError: the study does not search a name, or not with that value given the others.
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
    searched = walk(definition.space, lambda name, _: fixed.get(name))
    for name in fixed:
        given = f"--set {name}={texts[name]}: {name}"
        if name not in searched:
            tables = definition.space[name]
            where = " or where ".join(table.condition for table in tables)
            set_too = "change that" if all(table.when.keys() <= fixed.keys() for table in tables) else "set that too"
            raise DefinitionError(f"{given} is searched only where {where}; {set_too}, or remove it")
        table = applying(definition.space, name, fixed)
        assert table is not None  # as it is searched
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
        raise DefinitionError(f"--set {name}={text}: {name} must be {kind}; change it") from None
    # Of equal numbers the stored choice: 1 rather than 1.0.
    return next((choice for choice in searched.choices or () if choice == value), value)
