"""The report of a study: numbers (analysis), pictures (figures), a page around them, and what the dashboard shows."""

from collections.abc import Callable
from pathlib import Path

import optuna

from fmnist.data import DataSet
from fmnist.files import write_whole
from search.report.analysis import analyse
from search.report.comparison import compare
from search.report.custom_plots import publish
from search.report.page import render, render_comparison


def write(study: optuna.Study, folder: Path, to: Path, data: Callable[[], DataSet], url: str) -> Path:
    """Write the study's report as one HTML file that needs no network; returns its path.

    What the dashboard shows of it goes into the database.

    Args:
        folder: where the study's checkpoints are.
        data: loads the data set whose images score the best checkpoint.
        url: of the study's database.

    Raises:
        OSError: the file cannot be written.
        StorageError, StudyError: the file is written, but the database cannot be, or the study is no longer there.
    """
    analysis = analyse(study, folder, data)
    written = _written(to, render(analysis))
    publish(analysis, url)
    return written


def write_comparison(studies: list[tuple[optuna.Study, Path]], to: Path) -> Path:
    """Write a report on several studies, given with their folders; returns its path.

    Raises:
        OSError: the file cannot be written.
    """
    names = [study.study_name for study, _ in studies]
    return _written(to, render_comparison(compare(studies), names))


def _written(to: Path, page: str) -> Path:
    write_whole(to, page.encode())
    return to
