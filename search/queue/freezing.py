"""Paused trials: when a worker continues one, and when they end.

A paused trial is WAITING, with its progress in a user attribute. The choice is part of the transaction that claims a
trial; its rule is `scheduler.choose`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import optuna
from optuna.trial import TrialState
from sqlalchemy import Connection

from fmnist.seeds import derive
from search.database.optuna_schema import (
    TrialKey,
    best_by_step,
    count_by_state,
    ends,
    engine_of,
    last_report,
    lock_study,
    lock_trial,
    read_attribute,
    records,
    remove_attribute,
    write_attribute,
)
from search.formatting import points
from search.queue import lease, scheduler
from search.queue.scheduler import Progress
from search.study.definition import StudyDefinition
from search.study.record import AUDIT, PAUSED, STEPS_PER_EPOCH, Paused, parse_paused
from search.study.store import definition_of, goal

MOST_PAUSED = 100  # trials; Optuna reads every waiting trial again for each trial that it samples


def paused(study: optuna.Study) -> int:
    """Number of paused trials."""
    with engine_of(study).connect() as connection:
        return len(records(connection, study, PAUSED, state=TrialState.WAITING))


def is_chosen(study: optuna.Study, trial: Progress) -> bool:
    """Whether the scheduler would choose this running trial, so that it continues."""
    wanted = goal(study)["trials"]
    with engine_of(study).connect() as connection:
        return _choose(connection, study, Queue.of(connection, study, wanted), [trial]) == trial


def limit_paused(study: optuna.Study) -> None:
    """End the least promising paused trials if there are more than MOST_PAUSED.

    Audited ones among them are queued to be trained to their end instead.
    """
    definition, wanted = definition_of(study), goal(study)["trials"]
    with engine_of(study).begin() as connection:
        queue = Queue.of(connection, study, wanted)
        ranked = sorted(queue.paused.values(), key=lambda each: scheduler.promise(each.progress, queue.best))
        for each in ranked[MOST_PAUSED:]:
            if not _lock(connection, each):
                continue
            if is_audited(definition, each.trial.number):
                _begin_audit(connection, each.trial)
            else:
                lease.end_paused(connection, each.trial, _why(each, queue.best))


def end_paused(study: optuna.Study) -> int:
    """End all paused trials if the search has nothing left to train; return their number."""
    definition = definition_of(study)
    if definition.pruner != "freeze":
        return 0
    wanted = goal(study)["trials"]
    with engine_of(study).begin() as connection:
        lock_study(connection, study)
        queue = Queue.of(connection, study, wanted)
        left = queue.running or _choose(connection, study, queue)  # "new" for a ticket
        if left or any(is_audited(definition, number) for number in queue.paused):
            return 0
        if not all(_lock(connection, each) for each in queue.paused.values()):
            return 0  # another worker has just claimed one
        for each in queue.paused.values():
            lease.end_paused(connection, each.trial, _why(each, queue.best))
        return len(queue.paused)


def is_audited(definition: StudyDefinition, number: int) -> bool:
    """Whether a trial is audited: trained to its end although the pruner would stop it."""
    return derive(definition.seed, "audit", number) < definition.audit * 2**63


@dataclass(frozen=True)
class _Waiting:
    """A paused trial. stored: its record as stored JSON."""

    trial: TrialKey
    record: Paused
    stored: str

    @property
    def progress(self) -> Progress:
        return Progress(self.trial.number, self.record.step, self.record.accuracy, self.record.end)


@dataclass(frozen=True)
class Queue:
    """The queue's state at a choice. tickets: trials that have not started, including those not created yet."""

    best: dict[int, float]
    paused: dict[int, _Waiting]
    running: int
    begun: int
    tickets: int

    @classmethod
    def of(cls, connection: Connection, study: optuna.Study, goal: int) -> Self:
        state, best = count_by_state(connection, study), best_by_step(connection, study)
        found = records(connection, study, PAUSED, state=TrialState.WAITING)
        paused = {
            each.number: _Waiting(
                TrialKey(each.trial_id, each.number), parse_paused(each.stored, each.number, best), each.stored
            )
            for each in found
        }
        fresh = state[TrialState.WAITING] - len(paused)
        begun = state.total() - state[TrialState.FAIL] - fresh
        return cls(
            best=best,
            paused=paused,
            running=state[TrialState.RUNNING],
            begun=begun,
            tickets=max(fresh, goal - begun),
        )


def _choose(
    connection: Connection, study: optuna.Study, queue: Queue, others: Collection[Progress] = ()
) -> Progress | Literal["new"] | None:
    # With tickets left the complete trials do not matter, and reading 1,000 of them takes milliseconds.
    finished = [] if queue.tickets else ends(connection, study)
    complete = [Progress(number, step, value, step) for number, step, value in finished]
    candidates = [*(each.progress for each in queue.paused.values()), *others]
    return scheduler.choose(queue.best, complete, candidates, queue.begun, queue.tickets)


def choose(
    connection: Connection, study: optuna.Study, known: Mapping[str, Any], queue: Queue, ticket: TrialKey | None
) -> TrialKey | None:
    """Lock and return the trial that the scheduler chooses.

    Args:
        known: the study's user attributes.
        ticket: the next ticket, already locked.
    """
    while True:
        chosen = _choose(connection, study, queue)
        if chosen == "new":
            return ticket
        audited = None
        if chosen is None and _only_audits_run(connection, study, queue):
            definition = definition_of(study, known)
            audited = next((number for number in queue.paused if is_audited(definition, number)), None)
        number = chosen.number if isinstance(chosen, Progress) else audited
        if number is None:
            return None
        waiting = queue.paused.pop(number)
        if not _lock(connection, waiting):
            continue  # another worker has just claimed it
        if audited is not None:
            _begin_audit(connection, waiting.trial)
        return waiting.trial


def _only_audits_run(connection: Connection, study: optuna.Study, queue: Queue) -> bool:
    # Audited trials do not change which others are worth training.
    return queue.running == len(records(connection, study, AUDIT, state=TrialState.RUNNING))


def _lock(connection: Connection, waiting: _Waiting) -> bool:
    # False if another transaction holds the lock, or the trial has been continued since its record was read.
    state = lock_trial(connection, waiting.trial.trial_id, skip_locked=True)
    # Read the record after locking: on PostgreSQL another worker may meanwhile have trained and paused the trial again.
    return state == TrialState.WAITING and read_attribute(connection, waiting.trial.trial_id, PAUSED) == waiting.stored


def _begin_audit(connection: Connection, trial: TrialKey) -> None:
    since = last_report(connection, trial.trial_id).step / STEPS_PER_EPOCH
    write_attribute(connection, trial.trial_id, AUDIT, {"since": since})
    remove_attribute(connection, trial.trial_id, PAUSED)


def _why(paused: _Waiting, best: Mapping[int, float]) -> str:
    epoch, last = (step / STEPS_PER_EPOCH for step in (paused.record.step, paused.record.end))
    behind = points(best[paused.record.step] - paused.record.accuracy)
    return f"pruned after epoch {epoch:g} of {last:g}, {behind} points behind the best trial at that epoch"
