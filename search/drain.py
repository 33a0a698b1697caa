"""Workers on one study's queue, here or on a cluster, with their progress shown."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Literal

import optuna
from rich.console import Console

from search import queue
from search.engines import local, ray
from search.interrupts import Interrupts
from search.outage import persistently
from search.progress import FinishedTrials, Progress
from search.study import Place, stop_requests, told_if_deleted
from search.summary import summarize
from search.worker import WorkerSettings

Stopped = Literal["interrupted", "timeout", "request"]


@dataclass(frozen=True)
class RunSettings:
    """How a search runs here, as opposed to what it searches.

    trials: None for all of a grid, or the usual number of another search.
    worker: what each worker gets, but for its share of cores and devices. timeout: seconds.
    quiet: say nothing. as_json: print finished trials as JSON. address: of the Ray cluster, for the engine `ray`.
    command: that asked for it, without a password.
    """

    trials: int | None
    place: Place
    workers: int
    worker: WorkerSettings
    timeout: float | None
    quiet: bool
    as_json: bool = False
    engine: Literal["local", "ray"] = "local"
    address: str = "auto"
    command: str | None = None

    def deadline(self) -> float | None:
        """When the time that starts now is up, on the monotonic clock."""
        return None if self.timeout is None else time.monotonic() + self.timeout

    def each(self) -> list[WorkerSettings]:
        """The settings of each worker: this machine's cores and devices in shares; a cluster's are Ray's to give."""
        if self.engine == "ray":
            return [self.worker] * self.workers
        return local.shared_out(self.worker, self.workers)


def drain(
    study: optuna.Study,
    view: optuna.Study,
    settings: RunSettings,
    goal: int,
    console: Console,
    deadline: float | None,
) -> Stopped | None:
    """Run workers until the queue is empty; returns what stopped them before, if anything did.

    Args:
        view: the same study over an engine that only reads and so never waits.
        goal: trials of the study once it is.
        deadline: as `RunSettings.deadline` has it.

    Raises:
        StudyError: the study was deleted.
        WorkersDied, ClusterError, TooManyFailures: they cannot go on.
    """
    finished = FinishedTrials(view)
    request, requested = stop_requests(view), False

    progress = Progress(console, goal, finished.before, quiet=settings.quiet, as_json=settings.as_json)
    interrupts = Interrupts(lambda: progress.say("Stopping after the running epochs; Ctrl-C again stops at once."))

    def out_of_time() -> bool:
        return deadline is not None and time.monotonic() > deadline

    def tick() -> None:
        nonlocal requested
        requested = stop_requests(view) != request
        progress.goal = queue.goal(view)["trials"]  # another may have raised it
        progress.show(summarize(view, settings.place.folder), finished.new())

    with interrupts.installed(), told_if_deleted(view), progress.shown():
        run = partial(ray.drain, address=settings.address) if settings.engine == "ray" else local.drain
        run(
            study,
            settings.each(),
            stopping=lambda: interrupts.asked or requested or out_of_time(),
            on_tick=tick,
        )
    if interrupts.asked:
        return "interrupted"
    if out_of_time():
        return "timeout"
    return "request" if requested or persistently(lambda: stop_requests(view)) != request else None
