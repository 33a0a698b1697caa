"""Workers on one study's queue, here or on a cluster; and tickets added by hand."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from rich.console import Console

from fmnist import data as fashion
from fmnist.device import device_of
from fmnist.files import expand
from fmnist.own_network import OwnNetwork
from search import logs
from search.artifacts import located
from search.choices import GRACE, OUTPUT, Engine
from search.console.progress import FinishedTrials, Progress
from search.console.terminal import Interrupts
from search.database.connection import lock, open_storage, opened
from search.database.retry import reported, retry
from search.database.url import StorageError, default_url, warnings_for
from search.formatting import count
from search.logs import Level
from search.outputs import check_name
from search.queue import freezing, tickets
from search.results.summary import Stopped, summarize
from search.run import local, ray
from search.study import definition, space
from search.study.places import Place, StudyError, check_stays, folder_of, location_of
from search.study.store import definition_of, load_study, open_study, own_network_of, raise_if_deleted, stop_requests
from search.worker.loop import FOLLOW_POLL, WorkerSettings
from search.worker.trial import try_network

log = logging.getLogger(__package__)


@dataclass(frozen=True)
class RunSettings:
    """How a search runs here, as opposed to what it searches.

    trials: to finish; None for as many as the definition says.
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
    engine: Engine = "local"
    address: str = "auto"
    command: str | None = None

    @classmethod
    def of(
        cls,
        study: str,
        *,
        trials: int | None = None,
        output: Path | str | None = None,
        storage: str | None = None,
        artifacts: str | None = None,
        keep: int = Place.keep,
        workers: int | None = None,
        data_dir: Path | str | None = None,
        device: str = "auto",
        grace: float = GRACE,
        allow_mixed: bool = False,
        log_level: Level = "warning",
        timeout: float | None = None,
        quiet: bool = False,
        as_json: bool = False,
        engine: Engine = "local",
        address: str = "auto",
        command: str | None = None,
    ) -> Self:
        """The settings that `fmnist-search run` makes of its options, with its defaults.

        Args:
            study: its name in the database, and that of its folder in `output`.
            output: the output folder; where None, "studies", while a study that is there stays in its own.
            storage: URL of the database; studies.db in the output folder if None.
            workers: processes; if None one a GPU, or one a core where there is none.
            device: auto, cpu, cuda or mps.

        Raises:
            UsageError: the device is not on this machine.
        """
        if engine == "local" or device == "auto":  # whether a cluster has a device is not for this machine to say
            device = device_of(device).type
        folder = expand(output or OUTPUT)
        return cls(
            trials=trials,
            place=Place(folder / study, located(artifacts), keep, named=output is not None),
            workers=workers or local.workers_for(device),
            worker=WorkerSettings(
                storage=storage or default_url(folder),
                study=study,
                data_dir=expand(data_dir) if data_dir else None,
                device=device,
                grace=grace,
                allow_mixed=allow_mixed,
                log_level=log_level,
            ),
            timeout=timeout,
            quiet=quiet,
            as_json=as_json,
            engine=engine,
            address=address,
            command=command,
        )

    def of_network(self, own: OwnNetwork | None) -> Self:
        """With the user's own network for the workers."""
        return replace(self, worker=replace(self.worker, network=own.named if own else None))

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
    finished = retry(lambda: FinishedTrials(view))
    request, requested = retry(lambda: stop_requests(view)), False
    checkpoints = retry(lambda: location_of(view))
    progress = Progress(console, goal, finished.before, quiet=settings.quiet, as_json=settings.as_json)
    interrupts = Interrupts(lambda: progress.say("Stopping after the running epochs; Ctrl-C again stops at once."))

    def out_of_time() -> bool:
        return deadline is not None and time.monotonic() > deadline

    def tick() -> None:
        nonlocal requested
        requested = stop_requests(view) != request
        progress.goal = tickets.goal(view)["trials"]  # another may have raised it
        progress.show(summarize(view), finished.new())

    with interrupts.installed(), raise_if_deleted(view, checkpoints), progress.shown():
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
    return "request" if requested or retry(lambda: stop_requests(view)) != request else None


def join(settings: WorkerSettings, workers: int, say: Callable[[str], None]) -> bool:
    """Run workers until the queue is empty, or with `settings.follow` until they are stopped.

    Returns whether Ctrl-C ended it; SIGTERM is how a service is told to end, and no more than that.

    Raises:
        StorageError, StudyError: the study is not to be had.
        NetworkError: the user's own network is not here, or not what is on record.
        WorkersDied, TooManyFailures: the workers cannot go on.
    """
    notes: list[str] = []
    interrupts = Interrupts(lambda: notes.append("Stopping after the running epochs; once more stops at once."))
    with interrupts.installed(), reported(settings.storage):
        with logs.about(study=settings.study):
            study = _wait_for(settings, lambda: interrupts.asked)
        if study is None:
            return interrupts.by == signal.SIGINT
        own = retry(lambda: own_network_of(study))
        settings = replace(settings, network=own.named if own else None)
        for warning in warnings_for(settings.storage, workers):
            say(warning)
        say(f"{count(workers, 'worker')} on study {settings.study}, torch threads each: {local.threads_each(workers)}.")
        view = retry(lambda: load_study(open_storage(settings.storage), settings.study))
        request, stopped = retry(lambda: stop_requests(view)), False
        checkpoints = retry(lambda: location_of(view, settings.output and folder_of(view, settings.output)))

        def tick() -> None:
            nonlocal stopped
            while notes:
                say(notes.pop())
            stopped = stop_requests(view) != request

        with raise_if_deleted(view, checkpoints):
            local.drain(study, local.shared_out(settings, workers), lambda: interrupts.asked or stopped, tick)
    return interrupts.by == signal.SIGINT


def _wait_for(settings: WorkerSettings, interrupted: Callable[[], bool]) -> optuna.Study | None:
    """The study, once it is there; None if that was not waited for. Without `follow` it must be there now."""
    said = ""
    while not interrupted():
        try:
            return load_study(open_storage(settings.storage, "write"), settings.study)
        except (StudyError, StorageError) as error:
            if not settings.follow:
                raise
            if str(error) != said:
                said = str(error)
                log.warning("waiting for the study for as long as it takes: %s", said)
        time.sleep(FOLLOW_POLL)
    return None


@dataclass(frozen=True)
class Enqueued:
    """A study's queue afterwards. waiting: tickets in it. goal: trials that the study comes to."""

    study: str
    added: int
    waiting: int
    goal: int


def enqueue(
    study: str,
    trials: int,
    assignments: tuple[str, ...],
    url: str,
    place: Place,
    name: str,
    data_dir: Path | None,
) -> Enqueued:
    """Add tickets to a study.

    Args:
        study: the name or file of a definition to make it from, if there is none of that name in the database.
        assignments: NAME=VALUE, hyperparameters that these tickets fix.
        place: where a study that is made here has its files.
        name: of the study in the database.

    Raises:
        DefinitionError, NetworkError, StudyError, DataError, StorageError: nothing was added.
    """
    with opened(url, "create") as storage, reported(url), lock(url):
        target = _opened(storage, name, study, place, data_dir)
        defined = definition_of(target)
        fixed = space.parse_assignments(defined, assignments)
        added = tickets.enqueue(target, defined, trials, fixed)
        waiting = tickets.counts(target)[TrialState.WAITING] - freezing.paused(target)
        return Enqueued(name, added, waiting, tickets.goal(target)["trials"])


def _opened(storage: RDBStorage, named: str, study: str, place: Place, data_dir: Path | None) -> optuna.Study:
    if named in optuna.get_all_study_names(storage):
        opened = load_study(storage, named)
        if place.artifacts:
            check_stays(opened, place.artifacts)
        return opened
    check_name(named)
    defined = definition.read(study)
    try_network(defined)
    return open_study(storage, named, defined, fashion.load(data_dir), place)
