"""What a search needs of this machine: looked at, and how to mend what is amiss.

Nothing is made but a file that is removed at once where checkpoints go, and nothing is downloaded.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from search.doctor import database, machine
from search.doctor.check import Check
from search.url import default_url


@dataclass(frozen=True)
class Plan:
    """What a search would be started with; None is what is taken where nothing is given."""

    storage: str | None
    output: Path
    artifacts: str | None
    data_dir: Path | None
    workers: int | None


def examine(plan: Plan) -> Iterator[Check]:
    """All checks, each as soon as it is done."""
    url = plan.storage or default_url(plan.output)
    yield machine.python()
    yield from machine.torch(plan.workers)
    yield machine.data_set(plan.data_dir)
    yield from database.examine(url, plan.workers or os.cpu_count() or 1)
    yield machine.artifacts(plan.artifacts or str(plan.output))
    yield from machine.free_disk([plan.output, *database.folders(url)])
    yield machine.report()
