"""Hyperparameter searches over `fmnist`: run, read, reported. What is named here is for others to use, and stays.

Each name is imported when it is first used: torch and Optuna take seconds.
"""

from typing import TYPE_CHECKING

from fmnist.lazy import exports

if TYPE_CHECKING:
    from search import report
    from search.database.connection import open_storage
    from search.results.finalists import standings_of
    from search.results.summary import summarize
    from search.run.search import run_search
    from search.run.supervise import RunSettings
    from search.study import definition
    from search.study.definition import StudyDefinition
    from search.study.store import load_study

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

__getattr__ = exports(
    __name__,
    __all__,
    {
        "RunSettings": "drain",
        "StudyDefinition": "definition",
        "load_study": "study",
        "open_storage": "storage",
        "run_search": "run",
        "standings_of": "finalists",
        "summarize": "summary",
    },
)
