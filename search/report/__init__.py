"""The report of a study: numbers (analysis), pictures (figures), and the page around them."""

from collections.abc import Callable
from pathlib import Path

import optuna

from fmnist.data import DataSet
from search.report.analysis import analyse
from search.report.page import render


def write(study: optuna.Study, folder: Path, to: Path, data: Callable[[], DataSet]) -> Path:
    """Write the study's report as one HTML file that needs no network; returns its path.

    Args:
        folder: where the study's checkpoints are.
        data: loads the data set whose images score the best checkpoint.

    Raises:
        OSError: the file cannot be written.
    """
    page = render(analyse(study, folder, data))
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(page, encoding="utf-8")
    return to
