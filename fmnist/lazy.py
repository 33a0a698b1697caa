"""Names that a package exports and imports when they are first used."""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any


def exports(package: str, names: Collection[str], places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562).

    Args:
        names: all that it exports.
        places: the module of the package that each is in; those that are in none are modules themselves.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{places.get(name, name)}")
        return getattr(module, name) if name in places else module

    return get
