"""A whole search: make or resume the study, fill its queue, let workers drain it."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Literal

import optuna
from rich.console import Console

from fmnist import data as fashion
from search import queue
from search.definition import StudyDefinition
from search.engines import local, ray
from search.interrupts import Interrupts
from search.outage import persistently, reported
from search.progress import FinishedTrials, Progress
from search.reaper import held, release
from search.storage import lock, open_storage
from search.study import Place, load_study, open_study, stop_requests
from search.summary import Summary, summarize
from search.text import count
from search.url import masked, warnings_for
from search.worker import WorkerSettings


@dataclass(frozen=True)
class RunSettings:
    """How a search runs here, as opposed to what it searches.

    trials: None for all of a grid, or the usual number of another search.
    worker: what each worker gets, but for its share of cores and devices. timeout: seconds.
    address: of the Ray cluster, for the engine `ray`.
    """

    trials: int | None
    place: Place
    workers: int
    worker: WorkerSettings
    timeout: float | None
    quiet: bool
    engine: Literal["local", "ray"] = "local"
    address: str = "auto"

    def each(self) -> list[WorkerSettings]:
        """The settings of each worker: this machine's cores and devices in shares; a cluster's are Ray's to give."""
        if self.engine == "ray":
            return [self.worker] * self.workers
        return local.shared_out(self.worker, self.workers)


@dataclass(frozen=True)
class RunResult:
    """How a search ended. goal: trials it aimed at.

    had_work: whether anything was left to do. stopped: by whom, before the goal; None if it was reached.
    """

    study: optuna.Study
    data: fashion.DataSet
    summary: Summary
    goal: int
    had_work: bool
    stopped: Literal["interrupted", "timeout", "request"] | None


def run_search(definition: StudyDefinition, settings: RunSettings, console: Console) -> RunResult:
    """Bring the study to `settings.trials` finished trials, or as far as time allows.

    Tickets that an earlier run left in the queue are run too, if they are more.

    Raises:
        DataError, StorageError, StudyError, ArtifactError: nothing was started.
        WorkersDied, ClusterError, TooManyFailures: it cannot be brought there.
    """
    worker, folder = settings.worker, settings.place.folder
    data = fashion.load(worker.data_dir)
    storage = open_storage(worker.storage, "create")
    with reported(worker.storage):
        with lock(worker.storage):
            study = open_study(storage, worker.study, definition, data, settings.place, allow_mixed=worker.allow_mixed)
            release(study)
            goal = queue.top_up(study, definition, settings.trials)  # more, if an earlier run asked for more
        view = load_study(open_storage(worker.storage), worker.study)
        summary = summarize(view, folder)
        unfinished = summary.trials.finished < goal
        stopped = None
        if unfinished:
            if not settings.quiet:
                _announce(console, study, definition, data, settings, summary, goal)
            stopped = _drain(study, view, settings, goal, console)
        summary = persistently(lambda: summarize(view, folder))
        goal = persistently(lambda: queue.goal(view)["trials"])
    return RunResult(view, data, summary, goal, unfinished, stopped)


def _announce(
    console: Console,
    study: optuna.Study,
    definition: StudyDefinition,
    data: fashion.DataSet,
    settings: RunSettings,
    summary: Summary,
    goal: int,
) -> None:
    worker = settings.worker
    where = f" on the Ray cluster at {settings.address}" if settings.engine == "ray" else ""
    before = f" ({summary.trials.finished} are finished already)" if summary.trials.finished else ""
    if settings.trials and goal > settings.trials:
        before += f", as an earlier run asked for more than {settings.trials},"
    lines = [
        f"Study {worker.study}: {goal} trials{before} of {definition.defaults.architecture} on {data.name} "
        f"({len(data.train):,} + {len(data.test):,} images), scored on {definition.score_on}.",
        f"{definition.sampler} sampler, {definition.pruner} pruner, seed {definition.seed}; "
        f"{count(settings.workers, 'worker')}{where}, torch threads each: {settings.each()[0].threads}, "
        f"device: {worker.device}; {masked(worker.storage)}",
        *(f"Held already: {holder}." for holder in held(study)),
        *warnings_for(worker.storage, settings.workers, cluster=settings.engine == "ray"),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _drain(
    study: optuna.Study, view: optuna.Study, settings: RunSettings, goal: int, console: Console
) -> Literal["interrupted", "timeout", "request"] | None:
    """Run workers until the queue is empty; returns what stopped them before, if anything did.

    view: the same study over an engine that only reads and so never waits.
    """
    deadline = None if settings.timeout is None else time.monotonic() + settings.timeout
    before = summarize(view, settings.place.folder).trials
    finished = FinishedTrials(view)
    request, requested = stop_requests(view), False

    with Progress(console, goal, before.finished, settings.quiet) as progress:
        interrupts = Interrupts(lambda: progress.say("Stopping after the running epochs; Ctrl-C again stops at once."))

        def out_of_time() -> bool:
            return deadline is not None and time.monotonic() > deadline

        def tick() -> None:
            nonlocal requested
            requested = stop_requests(view) != request
            progress.goal = queue.goal(view)["trials"]  # another may have raised it
            progress.show(summarize(view, settings.place.folder), finished.new())

        with interrupts.installed():
            drain = partial(ray.drain, address=settings.address) if settings.engine == "ray" else local.drain
            drain(
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
