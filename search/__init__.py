"""Hyperparameter searches over `fmnist`: run, read, reported. What is named here is for others to use, and stays.

Each name is imported when it is first used: torch and Optuna take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search import definition, report
    from search.definition import StudyDefinition
    from search.drain import RunSettings
    from search.finalists import standings_of
    from search.run import run_search
    from search.storage import open_storage
    from search.study import load_study
    from search.summary import summarize

__all__ = [
    "RunSettings",
    "StudyDefinition",
    "definition",
    "load_study",
    "open_storage",
    "report",
    "run_search",
    "standings_of",
    "summarize",
]

_FROM = {
    "RunSettings": "drain",
    "StudyDefinition": "definition",
    "load_study": "study",
    "open_storage": "storage",
    "run_search": "run",
    "standings_of": "finalists",
    "summarize": "summary",
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
