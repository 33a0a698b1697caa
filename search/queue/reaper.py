"""Takes tickets from workers that died or make no progress, so that others can continue them."""

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy import Connection

from search import logs
from search.database.optuna_schema import TrialKey, engine_of, lock_trial, read_attribute, records, silence, trials_in
from search.queue.lease import fail_attempt, this_machine
from search.study.record import ATTEMPTS, parse_attempts

log = logging.getLogger(__package__)

SILENT = "silent"  # true for an attempt that was ended for lack of a heartbeat

Attempt = dict[str, Any]
# Maps an attempt and the time since its heartbeat to the reason to end it, or None.
Diagnosis = Callable[[Attempt, timedelta], str | None]


def reap(study: optuna.Study) -> int:
    """Take the tickets of workers without a heartbeat for longer than their grace; return their number."""

    def silent(attempt: Attempt, silence: timedelta) -> str | None:
        seconds = silence.total_seconds()
        reason = f"{_holder(attempt)} made no progress for {seconds:.0f} s; if it is just slow, increase --grace"
        return reason if seconds > attempt["grace"] else None

    return _take(study, silent, silent=True)


def hung(study: optuna.Study) -> set[int]:
    """Ids of this machine's processes whose latest attempt was ended for lack of a heartbeat."""
    with engine_of(study).connect() as connection:
        found = records(connection, study, ATTEMPTS)
    attempts = [attempt for record in found for attempt in parse_attempts(record.stored, record.number)]
    here = sorted((each for each in attempts if each["machine"] == this_machine()), key=lambda each: each["started"])
    last = {attempt["pid"]: attempt for attempt in here}
    return {pid for pid, attempt in last.items() if attempt.get(SILENT)}


def release(study: optuna.Study, *, pid: int | None = None, killed: bool = False) -> int:
    """Take the tickets of this machine's dead processes; return their number.

    Args:
        pid: only the tickets of this process, which the caller knows to be dead.
        killed: the caller killed the process, so no warning is logged.
    """
    here = this_machine()

    def dead(attempt: Attempt, _silence: timedelta) -> str | None:
        died = attempt["pid"] == pid or (pid is None and not alive(attempt["pid"]))
        return f"{_holder(attempt)} died" if died and attempt["machine"] == here else None

    return _take(study, dead, logging.INFO if killed else logging.WARNING)


def began(study: optuna.Study, pid: int) -> bool:
    """Whether a process of this machine ever claimed a ticket of the study."""
    with engine_of(study).connect() as connection:
        found = records(connection, study, ATTEMPTS)
    attempts = [attempt for record in found for attempt in parse_attempts(record.stored, record.number)]
    holders = [(attempt["machine"], attempt["pid"]) for attempt in attempts]
    return (this_machine(), pid) in holders


def held(study: optuna.Study) -> list[str]:
    """The running trials and their workers, as text."""
    with engine_of(study).connect() as connection:
        running = trials_in(connection, study, TrialState.RUNNING)
        attempts = [(number, read_attribute(connection, trial_id, ATTEMPTS)) for trial_id, number in running]
    return [
        f"trial {number} by {_holder(parse_attempts(stored, number)[-1]) if stored else 'another program'}"
        for number, stored in attempts
    ]


def alive(pid: int) -> bool:
    """Whether a process of this machine is running; a zombie is not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # it has just ended, or this system has no /proc


def _take(study: optuna.Study, diagnose: Diagnosis, level: int = logging.WARNING, *, silent: bool = False) -> int:
    with engine_of(study).connect() as connection:
        running = trials_in(connection, study, TrialState.RUNNING)
        suspects = [trial for trial in running if _reason(connection, trial, diagnose)]
    taken = 0
    for trial in suspects:
        with engine_of(study).begin() as connection:
            if lock_trial(connection, trial.trial_id, skip_locked=True) != TrialState.RUNNING:
                continue  # another process has taken it
            reason = _reason(connection, trial, diagnose)
            if reason is None:
                continue
            stored = read_attribute(connection, trial.trial_id, ATTEMPTS)
            assert stored  # else there would be no reason
            attempts = parse_attempts(stored, trial.number)
            attempts[-1] |= {SILENT: True} if silent else {}
            state = fail_attempt(connection, trial, attempts, reason)
        taken += 1
        with logs.about(study=study.study_name, trial=trial.number):
            fate = "failed permanently" if state == TrialState.FAIL else "taken over, back in the queue"
            log.log(level, "%s: %s", fate, reason)
    return taken


def _reason(connection: Connection, trial: TrialKey, diagnose: Diagnosis) -> str | None:
    stored, silent_for = read_attribute(connection, trial.trial_id, ATTEMPTS), silence(connection, trial.trial_id)
    if stored is None or silent_for is None:
        return None  # started by another program
    return diagnose(parse_attempts(stored, trial.number)[-1], silent_for)


def _holder(attempt: Attempt) -> str:
    return f"process {attempt['pid']} on {attempt['host']}"
