"""Worker processes on this machine: started, watched, replaced, ended.

Processes are spawned, never forked: a child forked from a process that has used torch
may hang in its first matrix product.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import optuna

from search import queue
from search.worker import WorkerSettings, main

TICK = 1.0  # seconds between two looks at the queue
REPLACEMENTS = 3  # crashed processes that are replaced, for each worker


class WorkersDied(Exception):
    """Worker processes crash as often as they are replaced."""


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """The torch threads of each worker: the cores are shared out."""
    return max(1, cores() // workers)


def settings_for(storage: str, study: str, data_dir: Path | None, device: str, workers: int) -> list[WorkerSettings]:
    """Settings for each worker of this machine; CUDA devices are given out in turn."""
    devices = [device]
    if device == "cuda":
        import torch

        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    threads = threads_each(workers)
    return [WorkerSettings(storage, study, data_dir, devices[i % len(devices)], threads) for i in range(workers)]


def drain(
    study: optuna.Study,
    settings: list[WorkerSettings],
    stopping: Callable[[], bool],
    on_tick: Callable[[], None],
) -> None:
    """Run one worker process for each of `settings` until no ticket waits and none is held.

    Once `stopping` says so, the workers finish their epoch, give their tickets back and
    end. Whatever ends this function, no worker outlives it and no ticket stays held.

    Raises:
        WorkersDied: too many processes ended by themselves before the queue was empty.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[int, SpawnProcess] = {}
    crashes = 0
    stopped = False

    def start(slot: int) -> None:
        processes[slot] = context.Process(target=main, args=(settings[slot],), name=f"worker-{slot}")
        with _ctrl_c_ignored():
            processes[slot].start()

    try:
        for slot in range(len(settings)):
            start(slot)
        while processes:
            connection.wait([process.sentinel for process in processes.values()], timeout=TICK)
            if stopping() and not stopped:
                stopped = True
                for process in processes.values():
                    process.terminate()
            for slot, process in list(processes.items()):
                if process.exitcode is None:
                    continue
                del processes[slot]
                queue.release(study, pid=process.pid)
                if process.exitcode == 0 or stopped:
                    continue
                crashes += 1
                if crashes > REPLACEMENTS * len(settings):
                    raise WorkersDied(f"{crashes} worker processes have crashed, the last with {process.exitcode}")
                start(slot)
            queue.release(study)
            on_tick()
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()
        for process in processes.values():
            queue.release(study, pid=process.pid)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes that are started within it never see Ctrl-C: it is for the parent to pass on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
