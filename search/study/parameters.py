"""The search space: the values of each hyperparameter, and the conditions under which it is searched.

A hyperparameter has one table of values, or several under different conditions; it is searched where the conditions
of one of its tables hold. A point assigns a value to each hyperparameter that is searched there.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WrapSerializer, model_validator

from search.formatting import short, written

LARGEST = 1_000_000  # limit for both ends of a range

Value = bool | int | float | str
Point = dict[str, Any]


class Strict(BaseModel):
    """A frozen model that rejects unknown keys and values of other types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Values = Annotated[list[Value], Field(min_length=1)]


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


class Parameter(Strict):
    """The values that one hyperparameter may take: a range from low to high, or choices."""

    low: int | float | None = Field(None, description="smallest value")
    high: int | float | None = Field(None, description="largest value")
    log: bool = Field(False, description="sample uniformly in the logarithm")
    step: int | float | None = Field(None, gt=0, description="distance between values")
    choices: Values | None = Field(
        None, description="the values, instead of a range; the sampler treats numbers as ordered"
    )
    when: dict[str, Annotated[Values, BeforeValidator(_listed)]] = Field(
        default_factory=dict,
        description="conditions: other searched hyperparameters, each with its required value or a list of values",
    )

    @model_validator(mode="after")
    def _is_a_range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("has choices and a range; keep one of them")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError("names a choice twice; remove one")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if max(abs(self.low), abs(self.high), self.step or 0) > LARGEST:
            raise ValueError(f"exceeds {LARGEST:,}; use smaller numbers")
        if self.low >= self.high:
            raise ValueError(f"is empty, as low {self.low} is not below high {self.high}; swap or change them")
        if self.log and self.low <= 0:
            raise ValueError(f"is logarithmic, so low must be above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("has both log and step; keep one of them")
        if self.step is not None and not _is_integral((self.high - self.low) / self.step):
            raise ValueError(f"does not reach high {self.high} from low {self.low} in steps of {self.step}; change one")
        return self

    @property
    def continuous(self) -> bool:
        return self.choices is None and self.step is None

    @property
    def ordered(self) -> bool:
        """Whether its values are numbers."""
        return self.choices is None or not any(isinstance(choice, bool | str) for choice in self.choices)

    @property
    def whole(self) -> bool:
        """Whether its values are integers."""
        return all(isinstance(end, int) and not isinstance(end, bool) for end in self.ends())

    def of_fractions(self) -> "Parameter":
        """This table for a float hyperparameter: integer bounds become floats."""
        if self.choices is not None:
            return self
        low, high = self.range
        return self.model_copy(update={"low": float(low), "high": float(high)})

    @property
    def condition(self) -> str:
        """Its conditions as text, such as `architecture is cnn or resnet, and optimizer is sgd`."""
        alternatives = {name: " or ".join(dict.fromkeys(map(written, values))) for name, values in self.when.items()}
        return ", and ".join(f"{name} is {values}" for name, values in alternatives.items())

    @property
    def words(self) -> str:
        """Its values and conditions as text, such as `8 to 24, step 8, where architecture is cnn`."""
        if self.choices is not None:
            values = ", ".join(map(written, self.choices))
        else:
            low, high = self.range
            step = f", step {self.step}" if self.step else ""
            values = f"{short(low)} to {short(high)}{', logarithmic' if self.log else ''}{step}"
        return f"{values}, where {self.condition}" if self.when else values

    def ends(self) -> list[Any]:
        """Both ends of the range, or all choices; if these are valid, so is every value."""
        return [self.low, self.high] if self.choices is None else list(self.choices)

    def has(self, value: object) -> bool:
        """Whether it is one of the values; True does not count as 1."""
        if self.choices is not None:
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices
            )
        low, high = self.range
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return False
        return self.step is None or _is_integral((value - low) / self.step)

    @property
    def range(self) -> tuple[float, float]:
        """Low and high of a table without choices."""
        assert self.low is not None  # validated above
        assert self.high is not None
        return self.low, self.high

    def values(self) -> list[Any]:
        """All values in order; a range without a step counts in steps of 1."""
        if self.choices is not None:
            return list(self.choices)
        low, step = Decimal(str(self.low)), Decimal(str(self.step or 1))
        numbers = (low + index * step for index in range(self.count()))
        whole = isinstance(self.low, int) and not isinstance(self.step, float)
        return [int(number) if whole else float(number) for number in numbers]

    def count(self) -> int:
        """The length of `values()`."""
        if self.choices is not None:
            return len(self.choices)
        low, high = self.range
        return math.floor((high - low) / (self.step or 1) + 1e-9) + 1

    def holds(self, point: Point) -> bool:
        """Whether its conditions hold at a point."""
        return not self.when or all(name in point and point[name] in values for name, values in self.when.items())


def _is_integral(steps: float) -> bool:
    return math.isfinite(steps) and abs(steps - round(steps)) < 1e-9


Tables = Annotated[
    list[Parameter],
    Field(min_length=1),
    BeforeValidator(_listed),
    WrapSerializer(lambda tables, dump: dumped if len(dumped := dump(tables)) > 1 else dumped[0]),
]
Space = Mapping[str, list[Parameter]]
SPACE: TypeAdapter[dict[str, list[Parameter]]] = TypeAdapter(dict[str, Tables])


def has_conditions(space: Space) -> bool:
    """Whether any hyperparameter has conditions."""
    return any(table.when for tables in space.values() for table in tables)


def in_order(space: Space) -> list[str]:
    """The hyperparameters in their given order, but each after those that its conditions name.

    Raises:
        ValueError: the conditions are circular; the message is the name of a hyperparameter in the cycle.
    """
    order: dict[str, None] = {}

    def add(name: str, under: tuple[str, ...]) -> None:
        if name in under:
            raise ValueError(name)
        for other in dict.fromkeys(each for table in space[name] for each in table.when if each in space):
            if other not in order:
                add(other, (*under, name))
        order.setdefault(name)

    for name in space:
        add(name, ())
    return list(order)


def applying(space: Space, name: str, point: Point) -> Parameter | None:
    """The table of a hyperparameter whose conditions hold at a point; None if it is not searched there."""
    return next((table for table in space.get(name, ()) if table.holds(point)), None)


def walk(space: Space, choose: Callable[[str, Parameter], Any]) -> Point:
    """Build a point by choosing a value for each hyperparameter that is searched.

    Args:
        choose: returns a value for a hyperparameter's name and applicable table, or None to leave it out.
    """
    point: Point = {}
    for name in in_order(space):
        table = applying(space, name, point)
        if table is not None and (value := choose(name, table)) is not None:
            point[name] = value
    return {name: point[name] for name in space if name in point}


def point_of(space: Space, values: Mapping[str, Any]) -> Point:
    """The point with the given values, without values that are not searched or not in the applicable table."""
    return walk(space, lambda name, table: value if table.has(value := values.get(name)) else None)


def is_complete(space: Space, point: Point) -> bool:
    """Whether a point has a valid value for each hyperparameter that is searched there, and nothing else."""
    tables = {name: table for name in space if (table := applying(space, name, point)) is not None}
    return tables.keys() == point.keys() and all(table.has(point[name]) for name, table in tables.items())


def points(space: Space) -> Iterator[Point]:
    """All points of a finite space."""
    order = in_order(space)

    def extend(index: int, point: Point) -> Iterator[Point]:
        if index == len(order):
            yield {name: point[name] for name in space if name in point}
            return
        table = applying(space, order[index], point)
        if table is None:
            yield from extend(index + 1, point)
        else:
            for value in table.values():
                yield from extend(index + 1, point | {order[index]: value})

    return extend(0, {})


def cases(space: Space) -> Iterator[tuple[Point, dict[str, list[int]]]]:
    """All combinations of values that the conditions tell apart, each with the applicable tables by hyperparameter.

    Of the values that no condition names, one represents all.
    """
    named: dict[str, list[Value]] = {}
    for table in (table for tables in space.values() for table in tables):
        for name, values in table.when.items():
            named[name] = [*named.get(name, []), *values]
    order = [name for name in in_order(space) if name in named]

    def extend(index: int, point: Point) -> Iterator[Point]:
        if index == len(order):
            yield point
            return
        name = order[index]
        table = applying(space, name, point)
        if table is None:
            yield from extend(index + 1, point)
            return
        listed = [value for value in dict.fromkeys(named[name]) if table.has(value)]
        other = next((value for value in table.values() if value not in listed), None)
        for value in listed if other is None else [*listed, other]:
            yield from extend(index + 1, point | {name: value})

    for point in extend(0, {}):
        yield (
            point,
            {
                name: [number for number, table in enumerate(tables) if table.holds(point)]
                for name, tables in space.items()
            },
        )


def count_points(space: Space, most: int) -> int:
    """The number of points; with conditions, counting stops at `most` + 1."""
    if has_conditions(space):
        return sum(1 for _ in itertools.islice(points(space), most + 1))
    return math.prod(tables[0].count() for tables in space.values())


def merged(tables: list[Parameter]) -> Parameter:
    """One table without conditions that contains all values of several."""
    if len(tables) == 1:
        return tables[0].model_copy(update={"when": {}})
    if all(table.choices is not None for table in tables):
        return Parameter(choices=list(dict.fromkeys(choice for table in tables for choice in table.values())))
    ends = [end for table in tables for end in table.ends()]
    steps = {table.step for table in tables}
    low, step = min(ends), steps.pop() if len(steps) == 1 else None
    aligned = step is not None and all(_is_integral((end - low) / step) for end in ends)
    log = all(table.log or table.choices is not None for table in tables) and low > 0
    return Parameter(low=low, high=max(ends), log=log, step=step if aligned else None)
