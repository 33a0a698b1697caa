"""Worker processes on this machine: starts, watches, replaces and ends them.

Workers are never forked from this process: the child of a process that has used torch may hang in its first matrix
product.
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

TICK = 1.0  # seconds between two checks of the queue
TROUBLE = 10.0  # seconds between two checks of the workers which show that the database was unreachable
USELESS = 5  # workers in a row, in every slot, that end without claiming a trial before the search gives up
STEADY = 60.0  # seconds; a worker that lived longer counts as useful even without a trial
FIRST_DELAY, LONGEST_DELAY = 0.25, 30.0  # seconds before an ended worker is replaced
LONGEST_TMPDIR = 70  # bytes: a socket's path may have 103 on macOS, 107 on Linux; multiprocessing adds 32

log = logging.getLogger(__package__)


class WorkersDied(ExpectedError):
    """The workers cannot continue; the message says why."""


def cores() -> int:
    """Number of CPU cores available to this process, given its affinity and a container's limits."""
    return int(joblib.cpu_count())


def workers_for(device: str) -> int:
    """Default number of workers: one per CUDA device, one for MPS, else one per core."""
    if device == "cuda":
        import torch

        return max(1, torch.cuda.device_count())  # 0 on a machine without CUDA that starts workers on a cluster
    return 1 if device == "mps" else cores()


def threads_each(workers: int) -> int:
    """Number of torch threads of each worker: its share of the cores."""
    return max(1, cores() // workers)


def shared_out(settings: WorkerSettings, workers: int) -> list[WorkerSettings]:
    """Settings for each worker on this machine: its share of the cores, and CUDA devices in turn."""
    devices = [settings.device]
    if settings.device == "cuda":
        import torch

        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    threads = threads_each(workers)
    return [replace(settings, device=devices[i % len(devices)], threads=threads) for i in range(workers)]


class Pool:
    """Worker processes on this machine. Each slot contains one, or none until a replacement is due."""

    def __init__(self, study: optuna.Study, settings: list[WorkerSettings], lines: Callable[[], Connection]) -> None:
        self.study = study
        self.lines = lines
        self.settings = settings
        self.processes: dict[int, BaseProcess] = {}
        self.errors: dict[int, Connection] = {}
        self.due: dict[int, float] = dict.fromkeys(range(len(settings)), 0.0)  # when to fill an empty slot
        self.started = [0.0] * len(settings)  # start time of each slot's last worker
        self.useless = [0] * len(settings)  # number of each slot's latest workers that ended without claiming a trial
        self.ending = False
        self.ticked = self.looked = time.monotonic()

    def fill(self) -> None:
        """Start a worker in each slot that is due; after a failure, try again later.

        Raises:
            WorkersDied: too many starts failed in a row.
        """
        for slot in [slot for slot, when in self.due.items() if when <= time.monotonic()]:
            del self.due[slot]
            try:
                self.processes[slot], self.errors[slot] = _start(self.settings[slot], self.lines())
            except (ConnectionError, EOFError):
                reason = "the server process that starts them was killed"
            except OSError as error:  # out of memory, processes or descriptors, or no folder for temporary files
                reason = " ".join(str(error).split())
            else:
                self.started[slot] = time.monotonic()
                log.info("worker process %d started", self.processes[slot].pid)
                continue
            log.warning("a worker process cannot be started: %s", reason)
            # Outside `except`, because the exception keeps a pipe open. If the server was killed after it had forked
            # a worker, that worker ends only when the pipe is closed.
            self.useless[slot] += 1
            self._plan(
                slot,
                f"worker processes cannot be started: {reason}; free memory or end other processes, or use fewer "
                "--workers, and run again",
            )

    def wait(self) -> None:
        """Wait up to TICK seconds for a worker to end."""
        connection.wait([process.sentinel for process in self.processes.values()], timeout=TICK)

    def sweep(self) -> None:
        """Remove ended workers, return their tickets to the queue, and plan replacements while work is left.

        It can be repeated after a database error: it changes this object only after all calls that may raise one.

        Raises:
            WorkersDied: a worker met an unrecoverable error, or workers keep ending without claiming a trial.
            StudyError: the study was deleted.
        """
        for slot, process in list(self.processes.items()):
            if process.exitcode is None:
                continue
            assert process.pid is not None  # it was started
            if alive(process.pid):  # the server that reports its exit died, and the worker is still running
                os.kill(process.pid, signal.SIGKILL)
                continue
            studies = studies_of(self.study, self.settings[slot])
            for study in studies:
                release(study, pid=process.pid)
            useful = any(began(study, process.pid) for study in studies)
            # Ask the queue instead of trusting exit code 0: SIGTERM leads to 0 too, and another command may have added
            # tickets after the worker's last check.
            over = self.ending or is_over(self.study, self.settings[slot])
            del self.processes[slot]
            # The user's code may exit with any code: only with a message is it our unrecoverable error.
            reported = process.exitcode == FAILED and self.errors[slot].poll()
            expected = self.ending or process.exitcode == 0 or reported
            level = logging.INFO if expected else logging.WARNING
            log.log(level, "worker process %d ended with exit code %d", process.pid, process.exitcode)
            if reported:
                raise WorkersDied(self.errors[slot].recv())
            if over:
                continue
            useful |= time.monotonic() - self.started[slot] > STEADY
            self.useless[slot] = 0 if useful else self.useless[slot] + 1
            self._plan(
                slot,
                f"{self.useless[slot]} worker processes in a row ended before they began a trial, "
                f"the last with exit code {process.exitcode}",
            )

    def end_hung(self) -> None:
        """Take the trials of workers without a heartbeat and kill these workers; `sweep` then replaces them."""
        now = time.monotonic()
        if now - self.ticked > TROUBLE:  # the database was unreachable: give workers time to reconnect
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
                    log.warning("worker process %d is killed, because its training makes no progress", process.pid)
                    process.kill()

    def _plan(self, slot: int, reason: str) -> None:
        # Plan a replacement, with a growing delay. Give up only if every slot is useless: the workers of some slots may
        # have been killed from outside, or memory may suffice for fewer workers.
        if min(self.useless) > USELESS:
            raise WorkersDied(reason)
        self.due[slot] = time.monotonic() + min(FIRST_DELAY * 2 ** min(self.useless[slot], 10), LONGEST_DELAY)

    def terminate(self) -> None:
        """Ask all workers to end after their epoch, and start no more."""
        self.ending = True
        self.due.clear()
        for process in self.processes.values():
            process.terminate()

    def kill(self) -> None:
        """Kill all workers and return their tickets to the queue."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.join()
        for slot, process in self.processes.items():
            with tolerate_outage():
                for study in studies_of(self.study, self.settings[slot]):
                    release(study, pid=process.pid, killed=True)


@contextmanager
def tolerate_outage() -> Iterator[None]:
    """Log a transient database error at the end of a search: the next command releases the tickets."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, StorageError) as error:
        if not is_transient(error):
            raise
        log.warning("running trials stay reserved until the next command: %s", message_of(error))


def run_workers(
    study: optuna.Study,
    settings: list[WorkerSettings],
    stopping: Callable[[], bool],
    on_tick: Callable[[], None],
) -> None:
    """Run one worker process for each of `settings`, and replace ended ones, until no work is left.

    However this function ends, no worker outlives it and no ticket stays held.

    Args:
        stopping: True lets the workers finish their epoch, return their tickets and end. It must become True after
            `fmnist-search stop`, too: workers end by themselves then, and are replaced until it does.
        on_tick: called about every second.

    Raises:
        WorkersDied: the workers cannot continue.
        TooManyFailures: too many trials failed.
        StudyError: the study was deleted.
    """
    with logs.gathered() as lines, logs.about(study=study.study_name):
        _supervise(Pool(study, settings, lines), stopping, on_tick)


def _supervise(pool: Pool, stopping: Callable[[], bool], on_tick: Callable[[], None]) -> None:
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
    # The connection receives the message of an error that ends the worker.
    context = process_context()
    errors, theirs = context.Pipe(duplex=False)
    with closing(theirs):
        process = context.Process(target=main, args=(settings, theirs, lines))
        with _same_imports(), _short_socket_path(), _signals_blocked():
            process.start()
    return process, errors


def process_context() -> ForkServerContext | SpawnContext:
    """The multiprocessing context that starts worker processes.

    On Linux a server that has only imported a worker's modules forks them: they start at once and share its memory.
    Elsewhere each is spawned, because system libraries there do not survive a fork.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["search.worker.loop"])
    return context


@contextmanager
def _same_imports() -> Iterator[None]:
    # Give processes that multiprocessing starts inside this context our sys.path. It starts the server, the resource
    # tracker and spawned workers as `python -c`, which imports even the standard library from the working directory
    # first. And up to Python 3.13 the server preloads modules before it receives our sys.path. An environment variable
    # would not do: `python -E` ignores it, and workers would inherit it.
    spawn = util.spawnv_passfds  # starts all three, with arguments [python, option..., "-c", code, ...]

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
    # Put the server's socket in /tmp if its path below TMPDIR would be too long.
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
        tempfile.tempdir = "/tmp"  # noqa: S108  # multiprocessing creates a private folder there
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _signals_blocked() -> Iterator[None]:
    # Processes started inside this context inherit the blocked signals: they never receive Ctrl-C, and SIGTERM once
    # they unblock it. This process receives pending ones afterwards, and passes them on.
    resource_tracker.ensure_running()  # else it would be started inside, and unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
