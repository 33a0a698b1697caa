"""What is wrong with a study definition: all of it at once, each mistake with its key and what to do."""

import difflib
import itertools
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from fmnist.hyperparameters import Hyperparameters
from search.formatting import did_you_mean, written
from search.study.parameters import (
    Parameter,
    applying,
    count_points,
    has_conditions,
    in_order,
    is_whole,
    point_of,
    walk,
)

if TYPE_CHECKING:
    from search.study.definition import StudyDefinition

LARGEST_GRID = 100_000  # trainings
UNION = {"bool", "int", "float", "str"}  # pydantic's names for the members of a union, which end the place of an error

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """What is wrong at a place of a definition, and what to do; others: the further places that it is about."""

    place: Place
    text: str
    others: tuple[Place, ...] = ()

    @property
    def line(self) -> str:
        """space.filters #2.low: should be a number."""
        key = "".join(f" #{part + 1}" if isinstance(part, int) else f".{part}" for part in self.place)
        return " ".join(": ".join(filter(None, (key.removeprefix("."), self.text))).split())

    def follows_from(self, removed: Iterable[Place]) -> bool:
        """Whether it is about what was removed, and so may be due to that."""
        mine = (self.place, *self.others)
        return any(a[: len(b)] == b or b[: len(a)] == a for a in mine for b in removed)


class Mistakes(ValueError):
    """A definition contradicts itself."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(mistake.line for mistake in mistakes))
        self.mistakes = mistakes


def check(definition: "StudyDefinition") -> None:
    """Check what no key can be checked for by itself.

    Raises:
        Mistakes: all that is wrong; how the space fits together is looked at only once each of its tables is right.
    """
    alone = [*_of_settings(definition), *_of_tables(definition)]
    together = () if alone else (_of_defaults, _of_grid, _of_starts)
    if mistakes := alone or [mistake for look in together for mistake in look(definition)]:
        raise Mistakes(mistakes)


def _of_settings(definition: "StudyDefinition") -> Iterator[Mistake]:
    sampler = definition.sampler
    conditional = next((name for name, tables in definition.space.items() if any(each.when for each in tables)), None)
    if not definition.space:
        yield Mistake(("space",), "is missing; name at least one hyperparameter", (("grid",),))
    for key, given in (("grid", definition.grid), ("seeds", definition.seeds > 1)):
        if given and sampler != "grid":
            yield Mistake((key,), 'needs sampler = "grid"; change either', (("sampler",),))
    if definition.start and sampler == "grid":
        yield Mistake(("start",), "a grid has all of its points; remove it, or choose another sampler", (("sampler",),))
    if conditional and sampler == "gp":
        rule = f"gp takes no conditions, as space.{conditional} has; choose tpe, random, qmc or grid"
        yield Mistake(("sampler",), rule)
    if definition.audit and definition.pruner == "none":
        yield Mistake(("audit",), "needs a pruner to look at; change either", (("pruner",),))


def _of_tables(definition: "StudyDefinition") -> Iterator[Mistake]:
    section = "grid" if definition.grid else "space"
    for name, tables in definition.space.items():
        if name not in Hyperparameters.model_fields:
            known = did_you_mean(name, Hyperparameters.model_fields)
            yield Mistake((section, name), f"is no hyperparameter; {known}", (("space", name),))
            continue
        conditions: list[Mistake] = []
        for number, table in enumerate(tables):
            place: Place = (name, number) if len(tables) > 1 else (name,)
            yield from _of_values(definition, (section, *place), name, table)
            conditions += _of_conditions(definition, ("space", *place), name, table)
        yield from conditions
        if conditions:
            continue
        for first, second in itertools.combinations(range(len(tables)), 2):
            if not tables[first].excludes(tables[second]):
                yield Mistake(
                    ("space", name),
                    f"tables #{first + 1} and #{second + 1} may apply at once; let their conditions exclude each other",
                )
    try:
        in_order(definition.space)
    except ValueError as error:
        yield Mistake(("space", str(error)), "depends on itself by its conditions; remove one of them")


def _of_values(definition: "StudyDefinition", place: Place, name: str, table: Parameter) -> Iterator[Mistake]:
    for value in table.ends():
        try:
            Hyperparameters.model_validate({name: value})
        except ValidationError as error:
            yield Mistake(place, f"{_shown(value)} cannot be, {_sentence(error.errors()[0])}")
            return
    if is_whole(name) and isinstance(table.step, float):
        yield Mistake((*place, "step"), f"must be a whole number, not {table.step}")
    elif definition.sampler == "grid" and not definition.grid and table.continuous and not is_whole(name):
        yield Mistake(place, "a grid needs step or choices here, or choose another sampler", (("sampler",), ("grid",)))


def _of_conditions(definition: "StudyDefinition", place: Place, name: str, table: Parameter) -> Iterator[Mistake]:
    space = definition.space
    for other, values in table.when.items():
        here = (*place, "when", other)
        if other not in space:
            known = did_you_mean(other, [each for each in space if each != name])
            yield Mistake(here, f"is not searched, so this holds always or never; {known}", (("space", other),))
        elif any(each.continuous and not is_whole(other) for each in space[other]):
            yield Mistake(here, "has any value of a range; give it choices or a step, or remove the condition")
        else:
            choices = [written(choice) for each in space[other] for choice in each.choices or ()]
            for value in values:
                if not any(each.has(value) for each in space[other]):
                    hint = did_you_mean(written(value), choices) if choices else "change either"
                    yield Mistake(here, f"{_shown(value)} is not in space.{other}; {hint}")


def _of_defaults(definition: "StudyDefinition") -> Iterator[Mistake]:
    mistakes = []

    def choose(name: str, table: Parameter) -> Any:
        value = getattr(definition.defaults, name)
        if not table.has(value):
            others = tuple((part, each) for each in (name, *table.when) for part in ("space", "defaults"))
            if name in definition.defaults.model_fields_set:
                text = f"{_shown(value)} is not in {_named(name, table)}; change either"
                mistakes.append(Mistake(("defaults", name), text, others))
            else:
                text = f"the default, {_shown(value)}, is not in {_named(name, table)}; set it in [defaults]"
                mistakes.append(Mistake((name,), text, others))
        return value

    walk(definition.space, choose)
    yield from mistakes


def _of_grid(definition: "StudyDefinition") -> Iterator[Mistake]:
    if definition.sampler != "grid":
        return
    space, parts = definition.space, definition.grid
    sizes = [math.prod(map(len, part.values())) for part in parts] or [count_points(space, LARGEST_GRID)]
    if definition.seeds * sum(sizes) > LARGEST_GRID:
        yield Mistake(("grid",), f"has more than {LARGEST_GRID:,} trainings; name fewer values")
        return
    for number, part in enumerate(parts):
        place: Place = ("grid", number)
        wrong = [
            Mistake((*place, name), f"{_shown(value)} is not in space.{name}; change either", (("space", name),))
            for name, values in part.items()
            for value in values
            if not any(table.has(value) for table in space.get(name, ()))
        ]
        yield from wrong
        if not wrong and has_conditions(space):
            combined = (dict(zip(part, values, strict=True)) for values in itertools.product(*part.values()))
            yield from next(filter(None, (list(_of_point(definition, place, one)) for one in combined)), [])


def _of_starts(definition: "StudyDefinition") -> Iterator[Mistake]:
    defaults = definition.defaults.model_dump()
    seen = [point_of(definition.space, defaults)]
    for number, given in enumerate(definition.start):
        place: Place = ("start", number)
        wrong = [
            Mistake((*place, name), "is not searched; add it to [space], or remove it here", (("space", name),))
            for name in given
            if name not in definition.space
        ]
        wrong += _of_point(definition, place, given)
        point = point_of(definition.space, defaults | given)
        for name in given.keys() & definition.space.keys() - point.keys():
            if not any(name in mistake.text or name in mistake.place for mistake in wrong):
                where = " or where ".join(table.condition for table in definition.space[name])
                wrong.append(Mistake((*place, name), f"is searched only where {where}; remove one of them"))
        if not wrong and point in seen:
            of_before = seen.index(point)
            which = f"start #{of_before}" if of_before else "the default configuration"
            wrong.append(Mistake(place, f"is {which} once more; remove it"))
        seen.append(point)
        yield from wrong


def _of_point(definition: "StudyDefinition", place: Place, given: Mapping[str, Any]) -> Iterator[Mistake]:
    """Whether values and the defaults beside them are one of the points."""
    defaults = definition.defaults.model_dump()
    values, default_point = {**defaults, **given}, point_of(definition.space, defaults)
    mistakes = []

    def choose(name: str, table: Parameter) -> Any:
        value = values[name]
        if not table.has(value):
            if name in given:
                text = f"{_shown(value)} is not in {_named(name, table)}; change either"
                mistakes.append(Mistake((*place, name), text))
            elif applying(definition.space, name, default_point) is not table:  # else that is said of the defaults
                text = f"{name} is missing, as its default, {_shown(value)}, is not in {_named(name, table)}; add it"
                mistakes.append(Mistake(place, text, (("space", name),)))
        return value

    walk(definition.space, choose)
    yield from mistakes


def _named(name: str, table: Parameter) -> str:
    return f"space.{name}{f' where {table.condition}' if table.when else ''}"


def _shown(value: object) -> str:
    return written(value) if isinstance(value, bool) else reprlib.repr(value)


def explain(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any]) -> list[Mistake]:
    """The mistakes in a definition, or in hyperparameters, from what pydantic says of them.

    Args:
        model, content: what was validated as what.
    """
    found: dict[Place, list[Any]] = {}
    for each in error.errors():
        if isinstance(contradictions := each.get("ctx", {}).get("error"), Mistakes):
            return contradictions.mistakes  # pydantic looks for them only where it has found nothing else
        place = each["loc"][:-1] if each["loc"] and each["loc"][-1] in UNION else each["loc"]
        found.setdefault(place, []).append(each)
    return [_mistake(model, _as_given(place, content), of_one) for place, of_one in found.items()]


def _as_given(place: Place, content: Any) -> Place:
    """A place without the numbers in lists of one that stand in the file without brackets."""
    kept: list[str | int] = []
    for part in place:
        if isinstance(part, int) and not isinstance(content, list):
            continue
        kept.append(part)
        known = isinstance(content, list) and isinstance(part, int) and part < len(content)
        content = content[part] if known else content.get(part) if isinstance(content, Mapping) else None
    return tuple(kept)


def _mistake(model: type[BaseModel], place: Place, errors: list[Any]) -> Mistake:
    if errors[0]["type"] != "extra_forbidden":
        return Mistake(place, _text(errors))
    inner: dict[Any, type[BaseModel]] = {"space": Parameter, "defaults": Hyperparameters}
    known = (inner[place[0]] if len(place) > 1 else model).model_fields
    meant = difflib.get_close_matches(str(place[-1]), known, n=1)  # what it is about, too
    text = f"is an unknown key; {did_you_mean(str(place[-1]), known)}"
    return Mistake(place, text, tuple((*place[:-1], name) for name in meant))


def _text(errors: list[Any]) -> str:
    """What is wrong with one value, of all that the members of a union say."""
    first = errors[0]
    if first["type"] == "missing":
        return "is missing; add it"
    if first["type"] in ("model_type", "dict_type"):
        return f"should be a table, not {reprlib.repr(first['input'])}"
    if len(errors) > 1:
        bound = next((each for each in errors if each["type"].startswith(("greater", "less"))), None)
        kind = "a number" if "str" not in {each["loc"][-1] for each in errors} else "true, false, a number or text"
        return _sentence(bound) if bound else f"should be {kind}, not {reprlib.repr(first['input'])}"
    return _sentence(first)


def _sentence(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return message if error["type"] == "value_error" else f"{message}, not {reprlib.repr(error['input'])}"
