"""The loop of one worker process: claim a ticket, run its trial, end it, repeat."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TypeVar
from uuid import uuid4

import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fmnist import data as fashion
from fmnist.device import default_precision
from fmnist.errors import ExpectedError, NetworkError
from fmnist.own_network import Named, adopt
from fmnist.training import Training
from search import logs
from search.artifacts import ArtifactError, Artifacts
from search.choices import GRACE
from search.database.connection import lock, open_storage
from search.database.optuna_schema import FIXED_PARAMETERS, open_trial, read_trial, set_parameters
from search.database.retry import is_transient, reported, retry
from search.database.url import StorageError
from search.formatting import percent
from search.queue import freezing, lease, tickets
from search.queue.lease import Holder, Lost, Ticket, beating, this_worker
from search.queue.reaper import reap, release
from search.study import space
from search.study.definition import StudyDefinition
from search.study.places import KEEP, artifacts_of, check_artifacts, folder_of
from search.study.store import (
    attributes,
    check_alike,
    check_precision,
    definition_of,
    finalists_name,
    finalists_of,
    load_study,
    own_network_of,
    raise_if_deleted,
    stop_requests,
)
from search.worker.retention import drop_outperformed, drop_partial
from search.worker.sampling import propose, pruner
from search.worker.trial import Objective, Outcome, run_trial

POLL = 0.5  # seconds between polls of a queue whose last tickets are held by other workers
FOLLOW_POLL = 2.0  # seconds between polls of an empty queue
FAILED = 3  # exit code for an unrecoverable error: do not restart the worker

T = TypeVar("T")

log = logging.getLogger(__package__)


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process needs to join a study.

    output: the output folder, if it is not the recorded one. threads: number of torch threads. grace: seconds without
    progress after which others may take its trial. follow: wait for new tickets when the queue is empty. finalists:
    continue with the study's finalists. network: the user's own, from the parent process.
    """

    storage: str = field(repr=False)  # it may contain a password
    study: str
    data_dir: Path | None = None
    output: Path | None = None
    device: str = "cpu"
    threads: int = 1
    grace: float = GRACE
    follow: bool = False
    finalists: bool = True
    allow_mixed: bool = False
    log_level: logs.Level = "warning"
    network: Named | None = field(default=None, repr=False)


class Retried:
    """An artifact store that retries while it is unreachable, for as long as the database is retried.

    Args:
        giving_up: called before each retry; True ends the retries.
    """

    def __init__(self, artifacts: Artifacts, giving_up: Callable[[], bool]) -> None:
        self.artifacts, self.location = artifacts, artifacts.location
        self.giving_up = giving_up
        self.failures = 0  # failed attempts so far; they renew the trial's heartbeat, as training steps do

    def write(self, name: str, content: bytes) -> None:
        self._tried(lambda: self.artifacts.write(name, content))

    def read(self, name: str) -> bytes | None:
        return self._tried(lambda: self.artifacts.read(name))

    def remove(self, name: str) -> None:
        # Best effort: a leftover file is harmless, and `gc` removes it later.
        with suppress(ArtifactError, OSError):
            self.artifacts.remove(name)

    def names(self) -> list[str]:
        return self._tried(self.artifacts.names)

    def locate(self, name: str) -> str | None:
        return self.artifacts.locate(name)

    def _tried(self, action: Callable[[], T]) -> T:
        try:
            return retry(action, self._failed)
        except (ArtifactError, OSError) as error:
            if not is_transient(error):
                raise
            # Reported as permanent: retrying the whole trial would train and wait for as long again.
            raise ArtifactError(f"{self.location} is unreachable: {' '.join(str(error).split())}") from error

    def _failed(self) -> bool:
        self.failures += 1
        return self.giving_up()


@dataclass(frozen=True)
class Joined:
    """A study that this process works on. request: the last request to stop from before it started."""

    study: optuna.Study
    objective: Objective
    request: str | None


class Stop:
    """SIGTERM's handler: the worker then stops after its epoch. (Its parent may kill it sooner.)"""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True


def main(settings: WorkerSettings, errors: Connection, lines: Connection) -> None:
    """Run as a worker process until the queue is empty, SIGTERM arrives, or the parent process dies.

    Args:
        errors: receives the message of an error that the user can fix.
        lines: receives log lines.
    """
    stop = Stop()
    logs.configure_worker(settings.log_level, lines)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent handles it
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked during start-up, see `_signals_blocked`
    if parent := parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        with reported(settings.storage), logs.about(study=settings.study, worker=this_worker()):
            work(settings, lambda: stop.requested)
    except (ExpectedError, OSError) as error:
        if stop.requested and isinstance(error, StorageError):
            raise SystemExit(1) from error  # it merely stopped waiting for the database; another worker can wait
        errors.send(str(error))
        raise SystemExit(FAILED) from error


def work(settings: WorkerSettings, stopping: Callable[[], bool]) -> None:
    """Run the tickets of the study in this process, then those of its finalists if they have been chosen.

    Raises:
        StudyError: the study is missing, or this process cannot work on it.
        TooManyFailures: too many trials failed.
        DataError, StorageError, ArtifactError, OSError: something that the trial needs is unavailable; its ticket was
            returned to the queue.
    """
    search = retry(lambda: _join(settings, settings.study), stopping)
    finalists: Joined | None = None
    while _run_queue(search, settings, stopping):
        if settings.finalists and finalists is None and retry(lambda: finalists_of(search.study), stopping):
            finalists = retry(lambda: _join(settings, finalists_name(settings.study)), stopping)
        if (finalists and not _run_queue(finalists, settings, stopping)) or not settings.follow:
            return
        time.sleep(FOLLOW_POLL)


def studies_of(study: optuna.Study, settings: WorkerSettings) -> list[optuna.Study]:
    """The studies whose queues a worker runs: the search and, once chosen, its finalists."""
    finalists = finalists_of(study) if settings.finalists else None
    return [study, finalists] if finalists else [study]


def is_over(study: optuna.Study, settings: WorkerSettings) -> bool:
    """Whether `work` has nothing left to do according to the database; a worker's exit code does not show that.

    Raises:
        StudyError: the study was deleted.
    """
    return not settings.follow and all(tickets.is_done(each) for each in studies_of(study, settings))


def _join(settings: WorkerSettings, name: str) -> Joined:
    study = load_study(open_storage(settings.storage, "write"), name)
    definition = definition_of(study)
    if settings.network:
        adopt(settings.network)
    own = own_network_of(study)
    data = fashion.load(settings.data_dir)
    check_alike(study, data, allow_mixed=settings.allow_mixed)
    device = torch.device(settings.device)
    with lock(settings.storage):
        check_precision(study, default_precision(device), allow_mixed=settings.allow_mixed)
    folder = settings.output and folder_of(study, settings.output)
    check_artifacts(study, folder)
    splits = fashion.split(data, definition.score_on)
    artifacts = artifacts_of(study, folder)
    release(study)
    drop_partial(study, artifacts)
    objective = Objective(definition, data, splits, device, artifacts, own)
    return Joined(study, objective, stop_requests(study))


def _run_queue(joined: Joined, settings: WorkerSettings, stopping: Callable[[], bool]) -> bool:
    # Run tickets until the queue is empty; return False if asked to stop before.
    study = joined.study
    holder = Holder(settings.device, settings.threads, settings.grace)

    def stop_requested() -> bool:
        return stopping() or stop_requests(study) != joined.request

    store = Retried(joined.objective.artifacts, stop_requested)
    objective = replace(joined.objective, artifacts=store)
    with raise_if_deleted(study, store.location):
        retry(lambda: tickets.check_failures(study), stopping)
        while not retry(stop_requested, stopping):
            token = uuid4().hex
            ticket = retry(lambda: tickets.claim(study, holder, token), stopping)  # noqa: B023
            if ticket is None:
                if retry(lambda: _nothing_left(study, objective, settings), stopping):
                    return True
                continue
            with logs.about(study=study.study_name, trial=ticket.number):
                log.info("claimed")
                try:
                    _run(study, objective, store, ticket, settings, stop_requested)
                except Lost:
                    log.warning("lost: another worker has taken over the trial, or it has ended")
    return False


def _nothing_left(study: optuna.Study, objective: Objective, settings: WorkerSettings) -> bool:
    empty = tickets.is_empty(study)  # first: a worker whose trial fails after this check refills the queue itself
    if release(study) + reap(study) + tickets.refill(study, settings.storage) + freezing.end_paused(study):
        return False
    if empty:
        drop_outperformed(
            study, objective.artifacts, attributes(study)[KEEP]
        )  # those of the paused trials that just ended
    else:
        time.sleep(POLL)
    return empty


def _run(
    study: optuna.Study,
    objective: Objective,
    store: Retried,
    ticket: Ticket,
    settings: WorkerSettings,
    stop_requested: Callable[[], bool],
) -> None:
    # Lost is raised if another worker has taken the ticket, or if a commit that ended the trial lost its answer.
    watched: list[Training] = []

    def attempt() -> Outcome:  # after a database error it continues from the last checkpoint
        torch.set_num_threads(settings.threads)
        return run_trial(_open(study, objective.definition, ticket), objective, stop_requested, watched.append)

    try:
        beats = beating(
            study, ticket, lambda: store.failures + sum(training.steps + training.scored for training in watched)
        )
        with lease.fenced(study, ticket), beats:  # in this order: see `fenced` on other threads
            outcome = retry(attempt, progress=lambda: max((training.quarters for training in watched), default=0))
    except Lost:
        raise
    except (SQLAlchemyError, StorageInternalError, StorageError):
        raise
    except (OSError, ArtifactError) as error:  # an error of the disk, not of the trial
        retry(lambda: lease.give_back(study, ticket))
        log.warning("given back: %s", error)
        if stop_requested():
            return
        raise
    except Exception as error:  # any other error ends this attempt, not the search
        # In an error of the user's own network, frames of its code follow the first line.
        named = str(error).partition("\n")[0] if isinstance(error, NetworkError) else error
        reason = f"{type(error).__name__}: {named}"
        final = isinstance(error, NetworkError)  # the same code on the same values fails again
        state = retry(lambda: lease.fail(study, ticket, reason, final=final))
        fate = "failed permanently" if state == TrialState.FAIL else "failed, will be retried"
        log.warning("%s: %s: %s", fate, type(error).__name__, error)
        retry(lambda: tickets.check_failures(study))
        return
    if outcome.paused:
        record = outcome.paused
        retry(lambda: lease.pause(study, ticket, record, read_trial(study, ticket.trial_id).params))
        log.info("paused")
        retry(lambda: freezing.limit_paused(study))
        return
    if outcome.state == TrialState.WAITING:
        retry(lambda: lease.give_back(study, ticket))
        log.info("given back")
        return
    retry(lambda: lease.finish(study, ticket, outcome.state, outcome.value, outcome.reason))
    log.info(
        "ended early: %s" if outcome.reason else "completed at %s", outcome.reason or percent(outcome.value or 0.0)
    )
    retry(lambda: drop_outperformed(study, objective.artifacts, attributes(study)[KEEP]))


def _open(study: optuna.Study, definition: StudyDefinition, ticket: Ticket) -> Trial:
    ranges = space.distributions(definition)
    trials = study.get_trials(deepcopy=False)  # before reading the trial: this brings it into Optuna's cache
    known = read_trial(study, ticket.trial_id)
    fixed = known.system_attrs.get(FIXED_PARAMETERS, {}) | known.params
    point = propose(definition, trials, ticket.number, fixed)
    # An earlier attempt may have stored all or some of the parameters.
    missing = {name: value for name, value in point.items() if name not in known.params}
    set_parameters(study, ticket.trial_id, missing, ranges)
    return open_trial(study, ticket.trial_id, pruner(definition))


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
