"""Worker processes on this machine: started, watched, replaced, ended.

Processes are spawned, never forked: a child forked from a process that has used torch
may hang in its first matrix product.
"""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.context import SpawnProcess

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


def settings_for(settings: WorkerSettings, workers: int) -> list[WorkerSettings]:
    """Share out this machine: CPU threads evenly, CUDA devices in turn."""
    threads = max(1, cores() // workers)
    devices = [settings.device]
    if settings.device == "cuda":
        import torch

        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [replace(settings, threads=threads, device=devices[i % len(devices)]) for i in range(workers)]


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
                if process.exitcode != 0 and not stopped:
                    crashes += 1
                    if crashes > REPLACEMENTS * len(settings):
                        raise WorkersDied(
                            f"{crashes} worker processes have crashed, the last with exit code {process.exitcode}"
                        )
                    start(slot)
            queue.release(study)
            on_tick()
    finally:
        for process in processes.values():
            process.kill()
            process.join()
            queue.release(study, pid=process.pid)
