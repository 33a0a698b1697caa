"""Worker processes on this machine: started, watched, replaced, ended.

Processes are never forked from this one: a child of a process that has used torch may hang
in its first matrix product.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

import optuna

from fmnist.errors import ExpectedError
from search.queue import TooManyFailures, check_failures
from search.reaper import release
from search.storage import persistently
from search.worker import FAILED, WorkerSettings, main

TICK = 1.0  # seconds between two looks at the queue
CRASHES = 3  # for each worker that are made good while the study stands still
LONGEST_PAUSE = 30.0  # seconds before a worker that crashed is started again


class WorkersDied(ExpectedError):
    """The workers cannot go on; the message says why."""


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    def __init__(self, study: optuna.Study, settings: list[WorkerSettings]) -> None:
        self.study = study
        self.settings = settings
        self.processes: dict[int, BaseProcess] = {}
        self.errors: dict[int, Connection] = {}
        self.due: dict[int, float] = dict.fromkeys(range(len(settings)), 0.0)  # when an empty place is to be filled
        self.crashes = 0  # since the study last moved
        self.ending = False

    def fill(self) -> None:
        """Start a worker in each place whose time has come."""
        context = _context()
        for place in [place for place, when in self.due.items() if when <= time.monotonic()]:
            del self.due[place]
            self.errors[place], theirs = context.Pipe(duplex=False)
            self.processes[place] = context.Process(target=main, args=(self.settings[place], theirs))
            with _ctrl_c_held_back():
                self.processes[place].start()
            theirs.close()

    def wait(self) -> None:
        """Wait for a worker to end, but not for long."""
        connection.wait([process.sentinel for process in self.processes.values()], timeout=TICK)

    def sweep(self) -> None:
        """Take the ended workers out; give back the tickets of those that crashed, and plan others for them.

        Raises:
            WorkersDied: one met what others would meet too, or they crash without end.
        """
        for place, process in list(self.processes.items()):
            if process.exitcode is None:
                continue
            release(self.study, pid=process.pid)
            del self.processes[place]
            if process.exitcode == FAILED:
                raise WorkersDied(self.errors[place].recv())
            if process.exitcode == 0 or self.ending:
                continue
            self.crashes += 1
            if self.crashes > CRASHES * len(self.settings):
                raise WorkersDied(
                    f"{self.crashes} worker processes crashed and the study stood still, "
                    f"the last with exit code {process.exitcode}"
                )
            self.due[place] = time.monotonic() + min(2.0 ** (self.crashes - 1) - 1, LONGEST_PAUSE)

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
        for process in self.processes.values():
            release(self.study, pid=process.pid)


def drain(
    study: optuna.Study,
    settings: list[WorkerSettings],
    stopping: Callable[[], bool],
    on_tick: Callable[[], Hashable],
) -> None:
    """Run one worker process for each of `settings` until they find the queue empty.

    Once `stopping` says so, the workers finish their epoch, give their tickets back and
    end. Whatever ends this function, no worker outlives it and no ticket stays held.

    Args:
        on_tick: called every second or so; returns something that changes when the study moves.

    Raises:
        WorkersDied: the workers cannot go on.
        TooManyFailures: failing is the rule among the trials.
    """
    pool = Pool(study, settings)
    failure: ExpectedError | None = None
    moved: Hashable = None
    try:
        while pool.processes or pool.due:
            pool.fill()
            pool.wait()
            if not pool.ending and (failure or stopping()):
                pool.terminate()
            try:
                persistently(pool.sweep, stopping)
                persistently(lambda: check_failures(study), stopping)
            except (WorkersDied, TooManyFailures) as error:
                failure = failure or error
            if (now := persistently(on_tick, stopping)) != moved:
                moved, pool.crashes = now, 0
    finally:
        pool.kill()
    if failure:
        raise failure


def _context() -> ForkServerContext | SpawnContext:
    """How worker processes are started.

    On Linux by a server that has imported all that a worker needs and did nothing with it:
    a worker starts at once, and shares those pages with the others. Elsewhere each is
    spawned, as system libraries there do not bear to be forked.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["search.worker"])
    return context


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes that are started within it never see Ctrl-C, and this one sees it afterwards: it is to pass it on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
