"""Hyperparameter searches over `fmnist`: run, read, reported. What is named here is for others to use, and stays.

Each name is imported when it is first used: torch and Optuna take seconds.
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
