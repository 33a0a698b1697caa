"""Exclusive ownership of a running trial: a recorded attempt, fenced writes, heartbeats, and its end.

An attempt is an entry in the trial's user attribute "attempts". The worker that wrote the last entry of a RUNNING
trial holds its ticket. An attempt ends in one transaction that first checks this. The heartbeat is renewed only while
training advances.
"""

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError

from search.choices import GRACE
from search.database.optuna_schema import (
    FIXED_PARAMETERS,
    TrialKey,
    add_system_attributes,
    engine_of,
    last_report,
    lock_trial,
    read_attribute,
    remove_attribute,
    remove_system_attributes,
    renew_heartbeat,
    set_state,
    set_value,
    start_heartbeat,
    write_attribute,
)
from search.database.retry import message_of
from search.database.url import StorageError
from search.queue import artifact_index
from search.study.record import (
    ATTEMPTS,
    CHECKPOINT,
    PAUSED,
    REASON,
    STEPS_PER_EPOCH,
    Paused,
    parse_attempts,
    parse_saved,
)

MOST_ATTEMPTS = 3  # attempts that may fail at the same step before the trial fails
GIVEN_BACK, PAUSE = "given back", "paused"  # outcomes of attempts that did not fail

Attempts = list[dict[str, Any]]

log = logging.getLogger(__package__)


class Lost(Exception):
    """This worker no longer holds the ticket, and must not write anything more for it."""


def this_machine() -> str:
    """An id of the scope in which process ids are unique: this boot of this machine, or this container."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.is_file():
        return f"{boot.read_text().strip()} {namespace.readlink()}"
    return f"{uuid.getnode():x}"


def this_worker() -> str:
    """This process's name in log lines."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Holder:
    """A worker process. grace: seconds without a heartbeat after which others may take its ticket."""

    device: str = "cpu"
    threads: int = 1
    grace: float = GRACE
    host: str = field(default_factory=socket.gethostname)
    machine: str = field(default_factory=this_machine)
    pid: int = field(default_factory=os.getpid)


@dataclass(frozen=True)
class Ticket:
    """A claimed trial. record: its attempts as stored JSON, unchanged while the claim is valid."""

    trial_id: int
    number: int
    record: str

    @property
    def trial(self) -> TrialKey:
        return TrialKey(self.trial_id, self.number)

    @property
    def attempts(self) -> Attempts:
        attempts: Attempts = json.loads(self.record)
        return attempts


def begin(connection: Connection, trial: TrialKey, holder: Holder, token: str) -> Ticket:
    """Record a new attempt and its first heartbeat; part of the transaction that claims the trial."""
    stored = read_attribute(connection, trial.trial_id, ATTEMPTS)
    earlier = parse_attempts(stored, trial.number) if stored else []
    attempt = {"token": token, **asdict(holder), "started": _timestamp()}
    record = write_attribute(connection, trial.trial_id, ATTEMPTS, [*earlier, attempt])
    start_heartbeat(connection, trial.trial_id)
    return Ticket(trial.trial_id, trial.number, record)


@contextmanager
def fenced(study: optuna.Study, ticket: Ticket) -> Iterator[None]:
    """Fence this thread's writes: inside this context, each transaction first checks that the ticket is still held.

    The trial then stays locked until the transaction ends, so nobody can take the ticket meanwhile. Optuna's own
    writes pass the fence too. No other thread may begin a transaction while this one enters or leaves the context.

    Raises:
        Lost: from any use of the database once the ticket is no longer held.
    """
    engine, thread = engine_of(study), threading.get_ident()

    def begun(connection: Connection) -> None:
        if threading.get_ident() == thread:
            _lock(connection, ticket)

    event.listen(engine, "begin", begun)
    try:
        yield
    finally:
        event.remove(engine, "begin", begun)


def finish(
    study: optuna.Study, ticket: Ticket, state: TrialState, value: float | None = None, reason: str | None = None
) -> None:
    """End the trial as COMPLETE with `value`, or as PRUNED with its last intermediate value.

    Replaces Optuna's `tell`, so that state, value and the attempt's end are written in one transaction. (None of our
    samplers implements `after_trial`.)

    Raises:
        Lost: the ticket is no longer held.
    """
    with engine_of(study).begin() as connection:
        attempts = _lock(connection, ticket)
        if state == TrialState.PRUNED:
            value = last_report(connection, ticket.trial_id).value
        if value is not None:
            set_value(connection, ticket.trial_id, value)
        _end(connection, ticket.trial, attempts, state, state.name.lower(), reason)


def give_back(study: optuna.Study, ticket: Ticket) -> None:
    """Return the trial to the queue, with its number, parameters and intermediate values.

    Raises:
        Lost: the ticket is no longer held.
    """
    with engine_of(study).begin() as connection:
        _end(connection, ticket.trial, _lock(connection, ticket), TrialState.WAITING, GIVEN_BACK)


def pause(study: optuna.Study, ticket: Ticket, paused: Paused, params: Mapping[str, Any]) -> None:
    """Pause the trial until the scheduler chooses it again.

    Args:
        params: the trial's parameters, stored as fixed ones: of a waiting trial the dashboard shows only those.

    Raises:
        Lost: the ticket is no longer held.
    """
    with engine_of(study).begin() as connection:
        attempts = _lock(connection, ticket)
        write_attribute(connection, ticket.trial_id, PAUSED, paused.model_dump())
        remove_system_attributes(connection, ticket.trial_id, [FIXED_PARAMETERS])
        add_system_attributes(connection, ticket.trial_id, {FIXED_PARAMETERS: dict(params)})
        _end(connection, ticket.trial, attempts, TrialState.WAITING, PAUSE)


def end_paused(connection: Connection, trial: TrialKey, reason: str) -> None:
    """End a paused trial, which the caller has locked, as PRUNED with its last intermediate value."""
    value = last_report(connection, trial.trial_id).value
    if value is not None:
        set_value(connection, trial.trial_id, value)
    remove_attribute(connection, trial.trial_id, PAUSED)
    write_attribute(connection, trial.trial_id, REASON, reason)
    artifact_index.register(connection, trial, TrialState.PRUNED)
    set_state(connection, trial.trial_id, TrialState.PRUNED)


def fail(study: optuna.Study, ticket: Ticket, reason: str, *, final: bool = False) -> TrialState:
    """End a failed attempt and return the trial's new state, as in `fail_attempt`.

    Args:
        final: fail the trial at once, because another attempt would fail in the same way.

    Raises:
        Lost: the ticket is no longer held.
    """
    with engine_of(study).begin() as connection:
        attempts = _lock(connection, ticket)
        if final:
            _end(connection, ticket.trial, attempts, TrialState.FAIL, reason, reason)
            return TrialState.FAIL
        return fail_attempt(connection, ticket.trial, attempts, reason)


def fail_attempt(connection: Connection, trial: TrialKey, attempts: Attempts, reason: str) -> TrialState:
    """Return the trial to the queue, or end it as FAIL if MOST_ATTEMPTS attempts in a row failed at the same step.

    Returns:
        WAITING or FAIL.
    """
    # An attempt that got further restarts the count: preemptions must not end a trial that makes progress each time.
    step = _step(connection, trial)
    failed = [attempt["step"] for attempt in attempts[:-1] if attempt["outcome"] not in (GIVEN_BACK, PAUSE)]
    if [*failed, step][-MOST_ATTEMPTS:] == [step] * MOST_ATTEMPTS:
        final = f"{reason} ({MOST_ATTEMPTS} attempts failed at the same step)"
        _end(connection, trial, attempts, TrialState.FAIL, reason, final)
        return TrialState.FAIL
    _end(connection, trial, attempts, TrialState.WAITING, reason)
    return TrialState.WAITING


def _end(
    connection: Connection,
    trial: TrialKey,
    attempts: Attempts,
    state: TrialState,
    outcome: str,
    reason: str | None = None,
) -> None:
    attempts[-1] |= {"ended": _timestamp(), "outcome": outcome, "step": _step(connection, trial)}
    write_attribute(connection, trial.trial_id, ATTEMPTS, attempts)
    if reason is not None:
        write_attribute(connection, trial.trial_id, REASON, reason)
    if state.is_finished():
        artifact_index.register(connection, trial, state)
    set_state(connection, trial.trial_id, state)


def _step(connection: Connection, trial: TrialKey) -> int:
    # The checkpoint of an audited trial is beyond its last intermediate value.
    reported = last_report(connection, trial.trial_id).step
    stored = read_attribute(connection, trial.trial_id, CHECKPOINT)
    history = parse_saved(stored, trial.number).get("history") if stored else None
    return max(reported, round(history[-1][0] * STEPS_PER_EPOCH)) if history else reported


def _lock(connection: Connection, ticket: Ticket) -> Attempts:
    # Lock the trial for this transaction, and return its attempts.
    if lock_trial(connection, ticket.trial_id) != TrialState.RUNNING:
        raise Lost
    if read_attribute(connection, ticket.trial_id, ATTEMPTS) != ticket.record:
        raise Lost
    return ticket.attempts


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


BEATS = 6  # heartbeats in a grace period


@contextmanager
def beating(study: optuna.Study, ticket: Ticket, steps: Callable[[], int]) -> Iterator[None]:
    """Renew the heartbeat from a thread inside this context, as long as `steps()` keeps rising.

    So the heartbeat of a hung training run stops.
    """
    over = threading.Event()

    def keep() -> None:
        seen = 0
        while not over.wait(ticket.attempts[-1]["grace"] / BEATS):
            if (count := steps()) > seen:
                seen = count
                try:
                    beat(study, ticket)
                except (SQLAlchemyError, StorageInternalError, StorageError) as error:
                    # Skip this heartbeat: the training thread meets the same error and handles it.
                    log.info("heartbeat not renewed: %s", message_of(error))

    thread = threading.Thread(target=copy_context().run, args=(keep,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def beat(study: optuna.Study, ticket: Ticket) -> None:
    """Renew the heartbeat, if the ticket is still held."""
    with engine_of(study).begin() as connection:
        renew_heartbeat(connection, ticket.trial_id, ATTEMPTS, ticket.record)
