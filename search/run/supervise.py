"""Workers for one study, on this machine or a cluster, and tickets that the user adds."""

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
from search.choices import FINALISTS, GRACE, OUTPUT, Engine
from search.console.progress import FinishedTrials, Progress
from search.console.terminal import Interrupts
from search.database.connection import lock, open_storage, opened
from search.database.retry import reported, retry
from search.database.url import Location, StorageError, default_url, warnings_for
from search.formatting import count
from search.logs import Level
from search.outputs import check_name
from search.queue import freezing, tickets
from search.results.finalists import names_of
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
    """How a search runs, as opposed to what it searches.

    trials: number to finish; None for the definition's. worker: settings of each worker, before cores and devices are
    divided among them. timeout: seconds. quiet: print nothing. as_json: print finished trials as JSON. address: of the
    Ray cluster, for the engine `ray`. command: the command to record, without passwords. usual: where commands without
    --storage and --output look for studies, None if unknown: commands in the report omit what these settings give.
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
    usual: Location | None = None

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
        usual: Location | None = None,
    ) -> Self:
        """The settings of `fmnist-search run` from its options, with the same defaults.

        Args:
            study: name of the study in the database, and of its folder in `output`.
            output: the output folder; if None, "studies" for a new study, and an existing one keeps its own.
            storage: URL of the database; if None, studies.db in the output folder.
            workers: number of processes; if None, one per GPU, or one per core without GPUs.
            device: auto, cpu, cuda or mps.

        Raises:
            UsageError: this machine lacks the device.
        """
        if engine == "local" or device == "auto":  # this machine does not know a cluster's devices
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
            usual=usual,
        )

    def of_network(self, own: OwnNetwork | None) -> Self:
        """These settings, with the user's own network for the workers."""
        return replace(self, worker=replace(self.worker, network=own.named if own else None))

    def deadline(self) -> float | None:
        """The end of a timeout that starts now, on the monotonic clock; None without a timeout."""
        return None if self.timeout is None else time.monotonic() + self.timeout

    def each(self) -> list[WorkerSettings]:
        """The settings of each worker, with its share of this machine's cores and devices; Ray assigns a cluster's."""
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
    """Run workers until the queue is empty; return what stopped them earlier, or None.

    Args:
        view: the same study over a read-only engine, which never waits.
        goal: number of trials when the study is finished.
        deadline: as in `RunSettings.deadline`.

    Raises:
        StudyError: the study was deleted.
        WorkersDied, ClusterError, TooManyFailures: the search cannot continue.
    """
    finished = retry(lambda: FinishedTrials(view))
    request, requested = retry(lambda: stop_requests(view)), False
    checkpoints = retry(lambda: location_of(view))
    progress = Progress(console, goal, finished.before, quiet=settings.quiet, as_json=settings.as_json)
    finalists = settings.worker.study.endswith(FINALISTS)
    interrupts = Interrupts(lambda: progress.say("Stopping after the running epochs; Ctrl-C again stops at once."))

    def out_of_time() -> bool:
        return deadline is not None and time.monotonic() > deadline

    def tick() -> None:
        nonlocal requested
        requested = stop_requests(view) != request
        progress.goal = tickets.goal(view)["trials"]  # another command may have raised it
        ended = finished.new()
        if finalists:
            progress.names = names_of(view)  # after reading the trials that it names
        progress.show(summarize(view), ended)

    with interrupts.installed(), raise_if_deleted(view, checkpoints), progress.shown():
        run = partial(ray.run_workers, address=settings.address) if settings.engine == "ray" else local.run_workers
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

    Returns:
        Whether Ctrl-C stopped it. SIGTERM does not count: it is the regular way to stop a service.

    Raises:
        StorageError, StudyError: the study is unavailable.
        NetworkError: the user's own network is missing, or differs from the recorded one.
        WorkersDied, TooManyFailures: the workers cannot continue.
    """
    notes: list[str] = []
    interrupts = Interrupts(lambda: notes.append("Stopping after the running epochs; repeat to stop at once."))
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
            local.run_workers(study, local.shared_out(settings, workers), lambda: interrupts.asked or stopped, tick)
    return interrupts.by == signal.SIGINT


def _wait_for(settings: WorkerSettings, interrupted: Callable[[], bool]) -> optuna.Study | None:
    # None if interrupted. Without `follow` the study must exist now.
    last_error = ""
    while not interrupted():
        try:
            return load_study(open_storage(settings.storage, "write"), settings.study)
        except (StudyError, StorageError) as error:
            if not settings.follow:
                raise
            if str(error) != last_error:
                last_error = str(error)
                log.warning("waiting without a time limit for the study: %s", last_error)
        time.sleep(FOLLOW_POLL)
    return None


@dataclass(frozen=True)
class Enqueued:
    """A study's queue after tickets were added. waiting: tickets in the queue. goal: the study's number of trials."""

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
    """Add tickets to a study, which is created if it does not exist.

    Args:
        study: name or file of the definition from which to create it.
        assignments: NAME=VALUE, hyperparameters that these tickets fix.
        place: where to put the files of a study that is created.
        name: of the study in the database.

    Raises:
        DefinitionError, NetworkError, StudyError, DataError, StorageError: no ticket was added.
    """
    with opened(url, "create") as storage, reported(url), lock(url):
        target = _opened(storage, name, study, place, data_dir)
        defined = definition_of(target)
        fixed = space.parse_assignments(defined, assignments)
        added = tickets.enqueue(target, defined, trials, fixed)
        waiting = tickets.counts(target)[TrialState.WAITING] - freezing.paused(target)
        return Enqueued(name, added, waiting, tickets.goal(target)["trials"])


def _opened(storage: RDBStorage, name: str, study: str, place: Place, data_dir: Path | None) -> optuna.Study:
    if name in optuna.get_all_study_names(storage):
        opened = load_study(storage, name)
        if place.artifacts:
            check_stays(opened, place.artifacts)
        return opened
    check_name(name)
    defined = definition.read(study)
    try_network(defined)
    return open_study(storage, name, defined, fashion.load(data_dir), place)
