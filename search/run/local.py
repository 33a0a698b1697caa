"""Worker processes on this machine: started, watched, replaced, ended.

Processes are never forked from this one: a child of a process that has used torch may hang
in its first matrix product.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import connection, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

import joblib
import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from fmnist.errors import ExpectedError
from search import logs
from search.database.retry import is_transient, message_of, retry
from search.database.url import StorageError
from search.queue.lease import BEATS
from search.queue.reaper import alive, began, hung, reap, release
from search.queue.tickets import TooManyFailures, check_failures
from search.worker.loop import FAILED, WorkerSettings, is_over, main, studies_of

TICK = 1.0  # seconds between two looks at the queue
TROUBLE = 10.0  # seconds from one look at the workers to the next, from which on the database was out of reach
USELESS = 5  # workers in a row that ended before they began a trial, in each place, after which the search ends
STEADY = 60.0  # seconds after which a worker that only waited for a trial is not one of those
FIRST_DELAY, LONGEST_DELAY = 0.25, 30.0  # seconds before a worker that ended is replaced
LONGEST_TMPDIR = 70  # bytes: a socket's path may have 103 on macOS, 107 on Linux, of which multiprocessing adds 32


log = logging.getLogger(__package__)


class WorkersDied(ExpectedError):
    """The workers cannot go on; the message says why."""


def cores() -> int:
    """The CPU cores that this process may use: its affinity, and a container's limit, count."""
    return int(joblib.cpu_count())


def workers_for(device: str) -> int:
    """How many workers are started where nobody says how many: one a CUDA device, one for MPS, else one a core."""
    if device == "cuda":
        import torch

        return max(1, torch.cuda.device_count())  # a cluster may have what this machine has not
    return 1 if device == "mps" else cores()


def threads_each(workers: int) -> int:
    """The torch threads of each worker: the cores are shared out."""
    return max(1, cores() // workers)


def shared_out(settings: WorkerSettings, workers: int) -> list[WorkerSettings]:
    """Settings for each worker of this machine: its share of the cores, and CUDA devices in turn."""
    devices = [settings.device]
    if settings.device == "cuda":
        import torch

        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    threads = threads_each(workers)
    return [replace(settings, device=devices[i % len(devices)], threads=threads) for i in range(workers)]


class Pool:
    """Worker processes on this machine. Each place holds one, or none while it waits to be filled again."""

    def __init__(self, study: optuna.Study, settings: list[WorkerSettings], lines: Callable[[], Connection]) -> None:
        self.study = study
        self.lines = lines
        self.settings = settings
        self.processes: dict[int, BaseProcess] = {}
        self.errors: dict[int, Connection] = {}
        self.due: dict[int, float] = dict.fromkeys(range(len(settings)), 0.0)  # when an empty place is to be filled
        self.started = [0.0] * len(settings)  # when the last worker of each place was
        self.useless = [0] * len(settings)  # workers of each place, in a row, that ended before they began a trial
        self.ending = False
        self.ticked = self.looked = time.monotonic()

    def fill(self) -> None:
        """Start a worker in each place whose time has come; where that fails, try again later.

        Raises:
            WorkersDied: it failed too many times in a row.
        """
        for place in [place for place, when in self.due.items() if when <= time.monotonic()]:
            del self.due[place]
            try:
                self.processes[place], self.errors[place] = _start(self.settings[place], self.lines())
            except (ConnectionError, EOFError):
                reason = "the process that starts them was killed"
            except OSError as error:  # of memory, processes, descriptors, the folder for temporary files
                reason = " ".join(str(error).split())
            else:
                self.started[place] = time.monotonic()
                log.info("worker process %d started", self.processes[place].pid)
                continue
            log.warning("a worker process cannot be started: %s", reason)
            # Not within `except`: the exception holds the pipe by which a worker that was started notices that it is
            # not wanted, as the server may be killed after it has forked.
            self.useless[place] += 1
            self._plan(
                place,
                f"worker processes cannot be started: {reason}; free memory or end other processes, or use fewer "
                "--workers, and run again",
            )

    def wait(self) -> None:
        """Wait for a worker to end, but not for long."""
        connection.wait([process.sentinel for process in self.processes.values()], timeout=TICK)

    def sweep(self) -> None:
        """Take the ended workers out, give back the tickets that they held, and plan others while work is left.

        It may be repeated after trouble with the database: what changes here comes after what may raise.

        Raises:
            WorkersDied: one met what others would meet too, or they end without end.
            StudyError: the study was deleted.
        """
        for place, process in list(self.processes.items()):
            if process.exitcode is None:
                continue
            assert process.pid is not None  # it was started
            if alive(process.pid):  # its server died, and it goes on unwatched
                os.kill(process.pid, signal.SIGKILL)
                continue
            studies = studies_of(self.study, self.settings[place])
            for study in studies:
                release(study, pid=process.pid)
            useful = any(began(study, process.pid) for study in studies)
            # The queue is asked and not the exit code: a worker that was sent SIGTERM ends with 0 too, and between
            # a worker's last look and this one another command may have added tickets.
            over = self.ending or is_over(self.study, self.settings[place])
            del self.processes[place]
            # The user's code may end a worker with any exit code: only one with a message met an error of ours.
            reported = process.exitcode == FAILED and self.errors[place].poll()
            expected = self.ending or process.exitcode == 0 or reported
            level = logging.INFO if expected else logging.WARNING
            log.log(level, "worker process %d ended with exit code %d", process.pid, process.exitcode)
            if reported:
                raise WorkersDied(self.errors[place].recv())
            if over:
                continue
            useful |= time.monotonic() - self.started[place] > STEADY
            self.useless[place] = 0 if useful else self.useless[place] + 1
            self._plan(
                place,
                f"{self.useless[place]} worker processes in a row ended before they began a trial, "
                f"the last with exit code {process.exitcode}",
            )

    def end_hung(self) -> None:
        """Kill the workers whose trial is taken from them for their silence, as their training may never return.

        `sweep` then starts others in their places.
        """
        now = time.monotonic()
        if now - self.ticked > TROUBLE:  # the database was away, and workers have yet to come back to it
            self.looked = now
        self.ticked = now
        if now - self.looked < self.settings[0].grace / BEATS:
            return
        self.looked = now
        for study in studies_of(self.study, self.settings[0]):
            reap(study)
            silent = hung(study)
            for process in self.processes.values():
                if process.pid in silent and process.is_alive():
                    log.warning("worker process %d is killed, as its training does not go on", process.pid)
                    process.kill()

    def _plan(self, place: int, trouble: str) -> None:
        """Plan another worker for a place; the more in a row were of no use there, the later.

        Raises:
            WorkersDied: they were too many in each place; `trouble` says of what. As long as one place is of use the
                search goes on: somebody may have killed the others, or they need more memory than is left.
        """
        if min(self.useless) > USELESS:
            raise WorkersDied(trouble)
        self.due[place] = time.monotonic() + min(FIRST_DELAY * 2 ** min(self.useless[place], 10), LONGEST_DELAY)

    def terminate(self) -> None:
        """Ask all workers to finish their epoch and end; start no more."""
        self.ending = True
        self.due.clear()
        for process in self.processes.values():
            process.terminate()

    def kill(self) -> None:
        """End all workers now and give back their tickets."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.join()
        for place, process in self.processes.items():
            with kept_for_later():
                for study in studies_of(self.study, self.settings[place]):
                    release(study, pid=process.pid, killed=True)


@contextmanager
def kept_for_later() -> Iterator[None]:
    """Let tickets stay held if the database is out of reach at the end of a search: the next command takes them."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, StorageError) as error:
        if not is_transient(error):
            raise
        log.warning("tickets stay held until the next command: %s", message_of(error))


def drain(
    study: optuna.Study,
    settings: list[WorkerSettings],
    stopping: Callable[[], bool],
    on_tick: Callable[[], None],
) -> None:
    """Run one worker process for each of `settings`, replaced whenever it ends, until no work is left.

    Once `stopping` says so, the workers finish their epoch, give their tickets back and
    end. Whatever ends this function, no worker outlives it and no ticket stays held.

    Args:
        stopping: also once `fmnist-search stop` was asked for: workers end by themselves then, and are replaced until
            this says so.
        on_tick: called every second or so.

    Raises:
        WorkersDied: the workers cannot go on.
        TooManyFailures: failing is the rule among the trials.
        StudyError: the study was deleted.
    """
    with logs.gathered() as lines, logs.about(study=study.study_name):
        _drain(Pool(study, settings, lines), stopping, on_tick)


def _drain(pool: Pool, stopping: Callable[[], bool], on_tick: Callable[[], None]) -> None:
    failure: ExpectedError | None = None
    try:
        while pool.processes or pool.due:
            if not pool.ending and (failure or stopping()):
                pool.terminate()
            try:
                pool.fill()
                pool.wait()
                retry(pool.sweep, stopping)
                retry(pool.end_hung, stopping)
                retry(lambda: check_failures(pool.study), stopping)
            except (WorkersDied, TooManyFailures) as error:
                failure = failure or error
            retry(on_tick, stopping)
    finally:
        pool.kill()
    if failure:
        raise failure


def _start(settings: WorkerSettings, lines: Connection) -> tuple[BaseProcess, Connection]:
    """Start a worker; returns its process, and what tells of the error that ended it.

    Raises:
        OSError, EOFError: it cannot be started.
    """
    context = process_context()
    errors, theirs = context.Pipe(duplex=False)
    with closing(theirs):
        process = context.Process(target=main, args=(settings, theirs, lines))
        with _same_imports(), _short_socket_path(), _signals_held_back():
            process.start()
    return process, errors


def process_context() -> ForkServerContext | SpawnContext:
    """How worker processes are started.

    On Linux by a server that has imported all that a worker needs and did nothing with it:
    a worker starts at once, and shares those pages with the others. Elsewhere each is
    spawned, as system libraries there do not bear to be forked.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["search.worker.loop"])
    return context


@contextmanager
def _same_imports() -> Iterator[None]:
    """Processes that multiprocessing starts within this import modules from the same folders as this process.

    It starts the server, the resource tracker and spawned workers as `python -c`: they would import from the working
    directory first, the standard library too. And up to Python 3.13 the server imports what it is to preload before it
    knows our sys.path. The environment is no way to tell them: `python -E` ignores it, and workers would inherit it.
    """
    spawn = util.spawnv_passfds  # which starts all three, given [python, option..., "-c", code, ...]

    def spawn_alike(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        python, *rest = args
        at = rest.index("-c") + 1
        rest[at] = f"import sys; sys.path[:] = {[entry for entry in sys.path if isinstance(entry, str)]!a}; {rest[at]}"
        return spawn(path, [python, "-P", *rest], passfds)  # -P: without the working directory from the start

    util.spawnv_passfds = spawn_alike
    try:
        yield
    finally:
        util.spawnv_passfds = spawn


@contextmanager
def _short_socket_path() -> Iterator[None]:
    """Within this the server's socket is in /tmp if its path would be too long below TMPDIR."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
        tempfile.tempdir = "/tmp"  # noqa: S108  # multiprocessing makes a private folder there
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM come to this process afterwards, which is to pass them on.

    What is started within it never sees Ctrl-C, and SIGTERM when it is ready for it.
    """
    resource_tracker.ensure_running()  # it would let them through in mid-start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
