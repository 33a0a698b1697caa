"""What a search needs of this machine: looked at, and how to mend what is amiss.

Nothing is made but a file that is removed at once where checkpoints go, and nothing is downloaded.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib

from search.database.url import default_url
from search.doctor.check import Check
from search.doctor.database import check_database, database_folders
from search.doctor.machine import check_artifacts, check_data_set, check_disk, check_python, check_report, check_torch


@dataclass(frozen=True)
class Plan:
    """What a search would be started with; None is what is taken where nothing is given.

    only: the parts that are looked at; all if there are none.
    """

    storage: str | None
    output: Path
    artifacts: str | None
    data_dir: Path | None
    workers: int | None
    only: tuple[str, ...] = ()


def examine(plan: Plan) -> Iterator[Check]:
    """All checks, each as soon as it is done."""
    for name, part in parts(plan).items():
        if name in (plan.only or (name,)):
            yield from part()


def parts(plan: Plan) -> dict[str, Callable[[], Iterable[Check]]]:
    """What can be looked at, by name."""
    url = plan.storage or default_url(plan.output)
    return {
        "python": lambda: [check_python()],
        "torch": lambda: check_torch(plan.workers),
        "data": lambda: [check_data_set(plan.data_dir)],
        "storage": lambda: check_database(url, plan.workers or joblib.cpu_count()),
        "artifacts": lambda: [check_artifacts(plan.artifacts or str(plan.output))],
        "disk": lambda: check_disk([plan.output, *database_folders(url)]),
        "report": lambda: [check_report()],
    }
