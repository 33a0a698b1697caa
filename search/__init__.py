"""Hyperparameter searches over `fmnist`: run them, read them, report on them. The names below are the stable API.

Each is imported on first use, because torch and Optuna take seconds to import.
"""

from typing import TYPE_CHECKING

from fmnist.lazy import exports

if TYPE_CHECKING:
    from search import report as report
    from search.database.connection import open_storage as open_storage
    from search.results.finalists import standings_of as standings_of
    from search.results.summary import summarize as summarize
    from search.run.search import run_search as run_search
    from search.run.supervise import RunSettings as RunSettings
    from search.study import definition as definition
    from search.study.definition import StudyDefinition as StudyDefinition
    from search.study.store import load_study as load_study

__getattr__, __all__ = exports(__name__)
