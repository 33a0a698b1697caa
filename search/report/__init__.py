"""The report of a study: numbers (analysis), figures, the HTML page, and plots for the dashboard."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import optuna

from fmnist.data import DataSet
from fmnist.files import write_atomically
from search.database.url import Location
from search.report.analysis import analyse
from search.report.comparison import compare

Form = Literal["html", "json"]


def write(
    study: optuna.Study,
    folder: Path,
    to: Path,
    data: Callable[[], DataSet],
    url: str,
    form: Form = "html",
    usual: Location | None = None,
) -> Path:
    """Write the study's report as self-contained HTML, or its numbers as JSON; returns the path.

    With HTML, the dashboard's figures and note are updated too.

    Args:
        folder: of the study's checkpoints.
        data: loads the data set on which the best checkpoint is scored.
        url: of the study's database.
        usual: as in `options_for`.

    Raises:
        OSError: the file cannot be written.
        StorageError, StudyError: the file is written, but the database cannot be, or the study was deleted.
    """
    analysis = analyse(study, folder, data, usual)
    if form == "json":
        return _written(to, as_json(analysis.as_json()))
    from search.report.dashboard_plots import publish
    from search.report.page import render  # importing plotly takes a second

    written = _written(to, render(analysis))
    publish(analysis, url)
    return written


def write_comparison(studies: list[tuple[optuna.Study, Path]], to: Path, form: Form = "html") -> Path:
    """Write a comparison of several studies, given with their folders; returns the path.

    Raises:
        OSError: the file cannot be written.
    """
    comparison = compare(studies)
    if form == "json":
        return _written(to, as_json(comparison.as_json()))
    from search.report.page import render_comparison

    names = [study.study_name for study, _ in studies]
    return _written(to, render_comparison(comparison, names))


def as_json(numbers: Any) -> str:
    """Serialize plain values; NaN and infinities, as of diverged training runs, become null."""
    return json.dumps(_finite(numbers), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _written(to: Path, content: str) -> Path:
    write_atomically(to, content.encode())
    return to
