"""A searched study for the dashboard tests."""

from pathlib import Path

import pytest

from fmnist.data import DataSet
from search.database.connection import open_storage
from search.database.url import default_url
from search.queue import tickets
from search.report import write
from search.study.places import Place
from search.study.store import open_study
from search.worker.loop import WorkerSettings, work
from tests.factories import definition


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny: DataSet, tiny_folder: Path) -> Path:
    """Output of a search: 12 finished trials, five with checkpoints, the report, and one waiting trial."""
    output = tmp_path_factory.mktemp("searched")
    url = default_url(output)
    defined = definition(sampler="random")
    study = open_study(open_storage(url, "create"), "shown", defined, tiny, Place(output / "shown"))
    tickets.top_up(study, defined, 12)
    work(WorkerSettings(url, "shown", tiny_folder), lambda: False)
    write(study, output / "shown", output / "shown" / "report.html", lambda: tiny, url)
    tickets.top_up(study, defined, 13)
    return output
