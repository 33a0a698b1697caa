"""Mistakes in a study definition, each with its key and what to do, and pydantic's errors translated to them."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from fmnist.hyperparameters import Hyperparameters
from search.formatting import did_you_mean
from search.study.parameters import Parameter

UNION = {"bool", "int", "float", "str"}  # pydantic appends the name of a union's member to an error's location

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """What is wrong at a key of a definition, and what to do. others: further keys that it concerns."""

    place: Place
    text: str
    others: tuple[Place, ...] = ()

    @property
    def line(self) -> str:
        """The mistake as text, such as `space.filters #2.low: should be a number`."""
        key = "".join(f" #{part + 1}" if isinstance(part, int) else f".{part}" for part in self.place)
        line = ": ".join(filter(None, (key.removeprefix("."), self.text)))
        return " ".join("".join(each if each.isprintable() else " " for each in line).split())

    def follows_from(self, removed: Iterable[Place]) -> bool:
        """Whether it concerns a removed key, and so may be a consequence of the removal."""
        mine = (self.place, *self.others)
        return any(a[: len(b)] == b or b[: len(a)] == a for a in mine for b in removed)


class Mistakes(ValueError):
    """The keys of a definition contradict each other."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(mistake.line for mistake in mistakes))
        self.mistakes = mistakes


def explain(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any]) -> list[Mistake]:
    """The mistakes behind a pydantic error.

    Args:
        model: the model that was validated: a definition, or hyperparameters.
        content: the data that was validated.
    """
    found: dict[Place, list[Any]] = {}
    for each in error.errors():
        if isinstance(contradictions := each.get("ctx", {}).get("error"), Mistakes):
            return contradictions.mistakes  # pydantic runs the model's validator only if all fields are valid
        place = each["loc"][:-1] if each["loc"] and each["loc"][-1] in UNION else each["loc"]
        if place[:2] == ("defaults", "network") and len(place) > 2:  # in a file they are keys of [defaults]
            place = ("defaults", *place[2:])
        found.setdefault(place, []).append(each)
    return [_mistake(model, _as_given(place, content), of_one) for place, of_one in found.items()]


def _as_given(place: Place, content: Any) -> Place:
    # A single table or value may stand in the file without the list's brackets; then its location has no index.
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
    meant = difflib.get_close_matches(str(place[-1]), known, n=1)  # the mistake concerns that key, too
    text = f"is an unknown key; {did_you_mean(str(place[-1]), known)}"
    return Mistake(place, text, tuple((*place[:-1], name) for name in meant))


def _text(errors: list[Any]) -> str:
    # `errors`: those of one value, one per member of a union.
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
    if error["type"] == "too_short":
        return "is empty; name at least one"
    return rule(error) if error["type"] == "value_error" else f"{rule(error)}, not {reprlib.repr(error['input'])}"


def rule(error: Any) -> str:
    """What pydantic requires of a value, as in "should be a valid integer"."""
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
