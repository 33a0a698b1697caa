"""Validation of a study definition across its keys; reports all mistakes at once, each with its key and what to do."""

import itertools
import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fmnist.choices import augmentations, is_own
from fmnist.errors import NetworkError
from fmnist.hyperparameters import DEFAULT_KERNEL_SIZE, RESERVED, TRAINING, Hyperparameters
from search.formatting import did_you_mean, written
from search.study.mistakes import Mistake, Mistakes, Place, rule
from search.study.parameters import (
    Parameter,
    Space,
    Value,
    applying,
    cases,
    count_points,
    has_conditions,
    point_of,
    walk,
)

if TYPE_CHECKING:
    from search.study.definition import StudyDefinition

LARGEST_GRID = 100_000  # training runs

OWN_ARCHITECTURE = (
    "your own network has its own hyperparameters, so it needs its own study; name it as architecture in [defaults]"
)


def check(definition: "StudyDefinition") -> None:
    """Check that the keys of a definition fit together.

    Raises:
        Mistakes: all mistakes; whether values lie in the space is checked only if each of its tables is valid.
    """
    mistakes = [*_of_settings(definition), *_of_tables(definition)]
    if not mistakes and definition.defaults_known:
        mistakes = [*_of_defaults(definition)]
        of_points = [*_of_grid(definition), *_of_starts(definition)]
        mistakes += [each for each in of_points if not each.follows_from({mistake.place for mistake in mistakes})]
    if mistakes:
        raise Mistakes(mistakes)


def _of_settings(definition: "StudyDefinition") -> Iterator[Mistake]:
    sampler = definition.sampler
    conditional = next((name for name, tables in definition.space.items() if any(each.when for each in tables)), None)
    yield from _of_arguments(definition)
    if not definition.space:
        yield Mistake(("space",), "is missing; add at least one hyperparameter", (("grid",),))
    for key, given in (("grid", definition.grid), ("seeds", definition.seeds > 1)):
        if given and sampler != "grid":
            yield Mistake((key,), 'needs sampler = "grid"; change either', (("sampler",),))
    if definition.start and sampler == "grid":
        text = "has no effect, as a grid runs all of its points; remove it, or choose another sampler"
        yield Mistake(("start",), text, (("sampler",),))
    if conditional and sampler == "gp":
        text = f"gp does not support conditions, and space.{conditional} has one; choose tpe, random, qmc or grid"
        yield Mistake(("sampler",), text)
    if definition.audit and definition.pruner == "none":
        yield Mistake(("audit",), "needs a pruner to audit; change either", (("pruner",),))


def _of_arguments(definition: "StudyDefinition") -> Iterator[Mistake]:
    own, arguments = definition.own, definition.defaults.network
    if definition.is_own:  # a name from a database might contain a terminal's escape sequences
        for name in [name for name in {**arguments, **definition.space} if not name.isidentifier()]:
            section = "space" if name in definition.space else "defaults"
            yield Mistake((section, name), "is not a valid name; use letters, digits and _")
    if not own:
        return
    for name, value in arguments.items():
        if name not in own.arguments:
            yield Mistake(("defaults", name), _unknown(definition, name))
        else:
            yield from _of_value(definition, ("defaults", name), name, value)
    for name in own.required:
        if name not in arguments:
            yield Mistake(("defaults", name), f"is missing and has no default in {own.constructor}; add it")


def _names(definition: "StudyDefinition") -> list[str]:
    if not definition.is_own:
        return [name for name in Hyperparameters.model_fields if name != "network"]
    of_training = [name for name in Hyperparameters.model_fields if name in TRAINING - {"architecture"}]
    if definition.own:
        return [*of_training, *definition.own.arguments]
    # Without its code, any other name may be a parameter of its constructor.
    searched = [name for name in definition.space if name not in RESERVED]
    return [*dict.fromkeys([*of_training, *definition.defaults.network, *searched])]


def _unknown(definition: "StudyDefinition", name: str) -> str:
    if definition.is_own and name == "architecture":
        return OWN_ARCHITECTURE
    others = did_you_mean(name, _names(definition))
    if definition.is_own and name in Hyperparameters.model_fields:  # of our networks
        return f"is not a parameter of {definition.defaults.architecture}; {others}"
    return f"is not a hyperparameter; {others}"


def _of_tables(definition: "StudyDefinition") -> Iterator[Mistake]:
    section = "grid" if definition.grid else "space"
    fields = _names(definition)
    known = {name: tables for name, tables in definition.space.items() if name in fields}
    for name in definition.space.keys() - known.keys():
        yield Mistake((section, name), _unknown(definition, name), (("space", name),))
    wrong: dict[str, list[Mistake]] = {name: [] for name in known}
    for name, number, table in _each(known):
        place: Place = (name, number) if len(known[name]) > 1 else (name,)
        wrong[name] += _of_values(definition, (section, *place), name, table)
    right = {name: tables for name, tables in known.items() if not wrong[name]}
    conditions: list[Mistake] = []
    for name, number, table in _each(known):
        place = ("space", name, number) if len(known[name]) > 1 else ("space", name)
        # An invalid table is reported once, not again in every condition that depends on it.
        conditions += _of_conditions(
            definition, right, place, name, {k: v for k, v in table.when.items() if not wrong.get(k)}
        )
    yield from itertools.chain(*wrong.values(), conditions)
    if len(right) == len(definition.space) and not conditions:
        yield from _of_cases(definition)


def _each(space: Space) -> Iterator[tuple[str, int, Parameter]]:
    return ((name, number, table) for name, tables in space.items() for number, table in enumerate(tables))


def _of_values(definition: "StudyDefinition", place: Place, name: str, table: Parameter) -> Iterator[Mistake]:
    invalid = [mistake for value in table.ends() for mistake in _of_value(definition, place, name, value)]
    if definition.is_own and name not in TRAINING:
        invalid = invalid[:1]  # one mistake names the expected type
    yield from invalid
    if invalid:
        return
    if name == "kernel_size" and not definition.is_own and table.has(DEFAULT_KERNEL_SIZE) and table.count() > 1:
        yield Mistake(
            place, f"{DEFAULT_KERNEL_SIZE} means the network's default size, which depends on it; list actual sizes"
        )
    if name == "augmentation_kind" and len({*map(tuple, map(augmentations, table.values()))}) < table.count():
        yield Mistake(place, "names the same augmentation twice; remove one")
    if table.whole and isinstance(table.step, float):
        yield Mistake((*place, "step"), f"must be a whole number, not {table.step}")
    elif definition.sampler == "grid" and not definition.grid and table.continuous and not table.whole:
        yield Mistake(place, "a grid needs step or choices here, or choose another sampler", (("sampler",), ("grid",)))


def _of_value(definition: "StudyDefinition", place: Place, name: str, value: object) -> Iterator[Mistake]:
    if definition.is_own and name not in TRAINING:
        try:
            if definition.own:
                definition.own.checked(name, value)
        except NetworkError as error:
            yield Mistake(place, str(error))
        return
    if name == "architecture" and isinstance(value, str) and is_own(value):
        yield Mistake(place, OWN_ARCHITECTURE)
        return
    try:
        Hyperparameters.model_validate({name: value})
    except ValidationError as error:
        yield Mistake(place, f"{_shown(value)} is invalid, {rule(error.errors()[0])}")


def _of_conditions(
    definition: "StudyDefinition", space: Space, place: Place, name: str, when: Mapping[str, list[Value]]
) -> Iterator[Mistake]:
    for other, values in when.items():
        here = (*place, "when", other)
        if other not in space:
            known = did_you_mean(other, [each for each in space if each != name])
            text = f"is not searched, so the condition holds always or never; {known}"
            yield Mistake(here, text, (("space", other),))
        elif any(each.choices is None and not each.whole for each in space[other]):
            yield Mistake(here, "is a continuous range; a condition needs choices or whole numbers")
        else:
            choices = [written(choice) for each in space[other] for choice in each.choices or ()]
            for value in values:
                if any(each.has(value) for each in space[other]):
                    yield from _of_value(definition, here, other, value)
                else:
                    hint = did_you_mean(written(value), choices) if choices else "change either"
                    yield Mistake(here, f"{_shown(value)} is not in space.{other}; {hint}")


def _of_cases(definition: "StudyDefinition") -> Iterator[Mistake]:
    space = definition.space
    try:
        possible = list(cases(space))
    except ValueError as error:
        yield Mistake(("space", str(error)), "depends on itself through its conditions; remove one of them")
        return
    for name, tables in space.items():
        both = next((numbers for _, applied in possible if len(numbers := applied[name]) > 1), None)
        if both:
            first, second = (number + 1 for number in both[:2])
            text = f"tables #{first} and #{second} can apply at the same time; make their conditions exclusive"
            yield Mistake(("space", name), text)
        for number in range(len(tables)):
            if not any(number in applied[name] for _, applied in possible):
                place: Place = ("space", name, number) if len(tables) > 1 else ("space", name)
                yield Mistake((*place, "when"), "never holds, as its conditions contradict each other; change them")


def _of_defaults(definition: "StudyDefinition") -> Iterator[Mistake]:
    mistakes = []
    values = definition.default_values
    given = definition.defaults.model_fields_set
    if definition.own:
        given = given | {name for name, value in values.items() if definition.own.defaults.get(name, value) != value}

    def choose(name: str, table: Parameter) -> Any:
        value = values.get(name)
        if not table.has(value):
            others = tuple((part, each) for each in (name, *table.when) for part in ("space", "defaults"))
            if name in given:
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
        yield Mistake(("grid",), f"has more than {LARGEST_GRID:,} training runs; use fewer values")
        return
    for number, part in enumerate(parts):
        place: Place = ("grid", number)
        wrong = [
            mistake
            for name, values in part.items()
            for value in values
            for mistake in _of_given(definition, (*place, name), name, value)
        ]
        yield from wrong
        if not wrong and has_conditions(space):
            combined = [dict(zip(part, values, strict=True)) for values in itertools.product(*part.values())]
            yield from _of_points(definition, place, combined)


def _of_starts(definition: "StudyDefinition") -> Iterator[Mistake]:
    defaults = definition.default_values
    seen = [point_of(definition.space, defaults)]
    for number, given in enumerate(definition.start):
        place: Place = ("start", number)
        wrong = [
            mistake for name, value in given.items() for mistake in _of_given(definition, (*place, name), name, value)
        ]
        wrong = wrong or list(_of_points(definition, place, [given]))
        point = point_of(definition.space, {**defaults, **given})
        if not wrong and point in seen:
            earlier = seen.index(point)
            which = f"start #{earlier}" if earlier else "the default configuration"
            wrong.append(Mistake(place, f"repeats {which}; remove it"))
        seen.append(point)
        yield from wrong


def _of_given(definition: "StudyDefinition", place: Place, name: str, value: object) -> Iterator[Mistake]:
    if name not in definition.space:
        yield Mistake(place, "is not searched; add it to [space], or remove it here", (("space", name),))
    elif invalid := list(_of_value(definition, place, name, value)):
        yield from invalid
    elif not any(table.has(value) for table in definition.space[name]):
        yield Mistake(place, f"{_shown(value)} is not in space.{name}; change either", (("space", name),))


def _of_points(definition: "StudyDefinition", place: Place, combined: list[dict[str, Any]]) -> Iterator[Mistake]:
    # With the defaults, `combined` must be points of the space, and each value must be searched in at least one.
    space, defaults = definition.space, definition.default_values
    default_tables = {name: applying(space, name, point_of(space, defaults)) for name in space}
    unused = {name: value for given in combined for name, value in given.items()}
    for given in combined:
        values = {**defaults, **given}
        for name, table in ((name, applying(space, name, point_of(space, values))) for name in space):
            if table is None:
                continue
            unused.pop(name, None)
            if table.has(values[name]):
                continue
            if name in given:
                yield Mistake((*place, name), f"{_shown(values[name])} is not in {_named(name, table)}; change either")
                return
            if table is not default_tables[name]:  # else `_of_defaults` reports it
                default = f"its default, {_shown(values[name])}, is not in {_named(name, table)}"
                yield Mistake(place, f"{name} is missing, and {default}; add it", (("space", name), ("defaults", name)))
                return
    for name in unused:
        where = " or where ".join(table.condition for table in space[name])
        others = tuple(("defaults", other) for table in space[name] for other in table.when)
        yield Mistake((*place, name), f"is searched only where {where}; remove it, or change that", others)


def _named(name: str, table: Parameter) -> str:
    return f"space.{name}{f' where {table.condition}' if table.when else ''}"


def _shown(value: object) -> str:
    return written(value) if isinstance(value, bool) else reprlib.repr(value)
