"""Public names of a package, imported on first use and declared once, where type checkers read them."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def exports(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """The `__getattr__` (PEP 562) and `__all__` of a package, read from the imports under its `if TYPE_CHECKING:`."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))  # TYPE_CHECKING
    modules = {
        alias.name: str(node.module)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(modules[name])
        if name not in vars(module) and find_spec(f"{module.__name__}.{name}"):
            return import_module(f"{module.__name__}.{name}")
        return getattr(module, name)

    return get, sorted(modules)
