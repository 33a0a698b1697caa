"""Child processes of tests: their targets, and how to start them.

Child processes import this module. It imports only what their server has imported already, so that they start at once.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console

from fmnist import data
from search.database.connection import lock, open_storage
from search.outputs import ENSEMBLE
from search.queue import freezing, reaper, tickets
from search.queue.lease import Holder
from search.run import finalists as run_finalists
from search.run.local import process_context
from search.run.supervise import RunSettings
from search.study.definition import StudyDefinition
from search.study.places import Place
from search.study.store import open_study
from search.worker import loop
from search.worker.loop import WorkerSettings, work
from search.worker.trial import Outcome


def spawn(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = process_context().Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@contextmanager
def together(target: Callable[..., None], count: int, *arguments: object) -> Iterator[None]:
    """Run `count` processes of the same target concurrently, and check that each succeeds."""
    processes = [spawn(target, *arguments) for _ in range(count)]
    yield
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def never() -> bool:
    return False


def create(url: str) -> None:
    open_storage(url, "create")


def fill(url: str, definition: StudyDefinition, trials: int) -> None:
    with lock(url):
        tickets.top_up(_study(url), definition, trials)


def take_all(url: str, results: "Queue[list[int]]") -> None:
    study = _study(url)
    taken: list[int] = []
    while ticket := tickets.claim(study, Holder(), f"{multiprocessing.current_process().name}-{len(taken)}"):
        taken.append(ticket.trial_id)
    results.put(taken)


def end_paused(url: str, results: "Queue[int]") -> None:
    results.put(freezing.end_paused(_study(url)))


def reap_all(url: str) -> None:
    reaper.reap(_study(url))


def claim_and_die(url: str, machine: str | None) -> None:
    holder = Holder(grace=1.0)
    holder = replace(holder, machine=machine) if machine else holder
    tickets.claim(_study(url), holder, "token")
    os.kill(os.getpid(), signal.SIGKILL)


def be_a_worker(settings: WorkerSettings) -> None:
    work(settings, never)


def be_one_of_many(
    settings: WorkerSettings, definition: StudyDefinition, trials: int, folder: Path, barrier: Barrier
) -> None:
    """Create, fill and run the same study as other processes, without training."""
    loop.run_trial = _instant  # type: ignore[assignment]
    loaded = data.load(settings.data_dir)
    barrier.wait()
    storage = open_storage(settings.storage, "create")
    with lock(settings.storage):
        study = open_study(storage, settings.study, definition, loaded, Place(folder))
        tickets.top_up(study, definition, trials)
    work(settings, never)


def _study(url: str) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=open_storage(url, "write"))


def _instant(trial: optuna.Trial, *_: object) -> Outcome:
    value = trial.params["learning_rate"]
    trial.report(value, 100)
    return Outcome(TrialState.COMPLETE, value)


def publish_and_die(settings: WorkerSettings, folder: Path, moment: str) -> None:
    """Train a study's finalists, and be killed "before", "within" or "after" writing the ensemble."""
    write = run_finalists.write_atomically

    def writing(path: Path, content: bytes) -> None:
        if path.name != ENSEMBLE:
            write(path, content)
            return
        if moment == "within":
            Path(f"{path.with_name('.partial')}").write_bytes(content[: len(content) // 2])
        elif moment == "after":
            write(path, content)
        os.kill(os.getpid(), signal.SIGKILL)

    run_finalists.write_atomically = writing  # type: ignore[attr-defined]
    run = RunSettings(None, Place(folder), 1, settings, None, quiet=True)
    run_finalists.run_finalists(run, 2, 1, Console(quiet=True))
