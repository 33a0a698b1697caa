"""What a search needs of this machine: looked at, and how to mend what is amiss.

Nothing is made but a file that is removed at once where checkpoints go, and nothing is downloaded.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib

from search.doctor import database, machine
from search.doctor.check import Check
from search.url import default_url


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
        "python": lambda: [machine.python()],
        "torch": lambda: machine.torch(plan.workers),
        "data": lambda: [machine.data_set(plan.data_dir)],
        "storage": lambda: database.examine(url, plan.workers or joblib.cpu_count()),
        "artifacts": lambda: [machine.artifacts(plan.artifacts or str(plan.output))],
        "disk": lambda: machine.free_disk([plan.output, *database.folders(url)]),
        "report": lambda: [machine.report()],
    }
