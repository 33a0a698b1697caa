"""The loop of one worker process: claim a ticket, run its trial, tell the study, again."""

import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from types import FrameType

import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fmnist import data as fashion
from fmnist.errors import DataError
from search import queue
from search.objective import run_trial
from search.storage import StorageError, open_storage, reported
from search.study import REASON, checkpoint_path, definition_of, folder_of, load_study, pruner, sampler

POLL = 0.5  # seconds between two looks at a queue whose last tickets are held by others


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process needs to join a study. threads: of torch, in this process."""

    storage: str
    study: str
    data_dir: Path | None
    device: str
    threads: int


class Stop:
    """Whether the worker was asked to end: once, after its epoch; twice, at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(1)
        self.asked = True


def main(settings: WorkerSettings) -> None:
    """Be a worker process until the queue is empty or SIGTERM asks to stop.

    Ctrl-C reaches a whole terminal; it is for the parent to pass on. A worker whose
    parent dies ends with it.
    """
    stop = Stop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    if parent := parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(settings.threads)
    try:
        with reported(settings.storage):
            work(settings, stop)
    except (StorageError, DataError) as error:
        sys.exit(f"worker {os.getpid()}: {error}")


def work(settings: WorkerSettings, stop: Stop) -> None:
    """Drain the queue in this process."""
    device = torch.device(settings.device)
    study = load_study(open_storage(settings.storage, "write"), settings.study)
    definition = definition_of(study)
    data = fashion.load(settings.data_dir)
    splits = fashion.split(data, definition.score_on)
    owner = queue.Owner(device=settings.device)
    while not stop.asked:
        trial_id = queue.claim(study, owner)
        if trial_id is None:
            if queue.is_empty(study):
                return
            time.sleep(POLL)  # another worker's ticket may come back
            continue
        # A new study object over the same cache: samplers and pruners keep state between trials.
        number = study._storage.get_trial(trial_id).number
        fresh = optuna.Study(study.study_name, study._storage, sampler(definition, number), pruner(definition))
        fresh.get_trials(deepcopy=False)  # the cache must know the ticket before it is sampled
        trial = Trial(fresh, trial_id)
        path = checkpoint_path(folder_of(study), trial.number)
        try:
            outcome = run_trial(trial, definition, data, splits, device, path, lambda: stop.asked)
        except (SQLAlchemyError, StorageInternalError):
            raise  # the database's trouble is not the trial's
        except Exception as error:  # whatever else a trial raises ends that trial, not the search
            trial.set_user_attr(REASON, f"{type(error).__name__}: {error}")
            fresh.tell(trial, state=TrialState.FAIL)
            continue
        if outcome.reason:
            trial.set_user_attr(REASON, outcome.reason)
        if outcome.state == TrialState.WAITING:
            queue.give_back(study, trial_id, asdict(owner))
        else:
            fresh.tell(trial, outcome.value, outcome.state)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
