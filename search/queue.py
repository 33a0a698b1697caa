"""Trials as tickets: topped up to a budget, claimed once each, given back.

A ticket is a WAITING trial in Optuna's own tables. Claiming it is one transaction, so
that any number of workers on any machine drain the queue exactly.
"""

import itertools
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import delete, insert, select, update

from search import space
from search.definition import StudyDefinition

OWNER = "worker"  # the trial's user attribute that names who holds or held it

TRIALS = TrialModel.__table__
ATTRIBUTES = TrialUserAttributeModel.__table__


@dataclass(frozen=True)
class Owner:
    """Who holds a ticket."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: uuid4().hex)
    device: str = "cpu"


def counts(study: optuna.Study) -> Counter[TrialState]:
    """How many trials are in each state."""
    return Counter(trial.state for trial in study.get_trials(deepcopy=False))


def size(study: optuna.Study) -> int:
    """How many trials the study comes to once its queue is empty."""
    state = counts(study)
    return sum(state.values()) - state[TrialState.FAIL]


def top_up(study: optuna.Study, definition: StudyDefinition, trials: int) -> int:
    """Add tickets until finished, running and waiting trials are `trials`; returns how many.

    A grid gets no more than its points. Call it under the storage's lock: then two callers with one aim do not add up.
    """
    points = _points(study, definition, start=sum(counts(study).values()))
    missing = list(itertools.islice(points, max(0, trials - size(study))))
    for point in missing:
        attributes = {} if point is None else {"fixed_params": point}
        study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=attributes))
    return len(missing)


def _points(study: optuna.Study, definition: StudyDefinition, start: int) -> Iterator[space.Point | None]:
    """The parameters of the tickets from trial number `start` on; None leaves them to the sampler."""
    ranges = space.distributions(definition)
    defaults = {name: getattr(definition.defaults, name) for name in ranges}
    if definition.sampler == "grid":
        taken = [
            trial.system_attrs.get("fixed_params")
            for trial in study.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL
        ]
        free = [point for point in space.grid(ranges) if point not in taken]
        yield from sorted(free, key=lambda point: point != defaults)  # the default comes first
        return
    make = {"random": space.random_point, "qmc": space.quasi_random_point}.get(definition.sampler)
    number = start
    while True:
        if number == 0:
            yield defaults
        else:
            yield make(ranges, definition.seed, number - 1) if make else None
        number += 1


def claim(study: optuna.Study, owner: Owner) -> int | None:
    """Take the oldest ticket: WAITING to RUNNING, with the owner's name, in one transaction.

    Returns:
        The trial's id in the database, or None where nothing waits.
    """
    waiting = (
        select(TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study._study_id, TRIALS.c.state == TrialState.WAITING)
        .order_by(TRIALS.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    with backend(study).engine.begin() as connection:
        trial_id = connection.scalar(waiting)
        if trial_id is None:
            return None
        started = datetime.now(UTC).replace(tzinfo=None)  # Optuna stores naive UTC
        connection.execute(
            update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(state=TrialState.RUNNING, datetime_start=started)
        )
        connection.execute(delete(ATTRIBUTES).where(ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == OWNER))
        connection.execute(
            insert(ATTRIBUTES).values(trial_id=trial_id, key=OWNER, value_json=json.dumps(asdict(owner)))
        )
    return int(trial_id)


def is_empty(study: optuna.Study) -> bool:
    """Whether no ticket waits and none is held, so that none can come back."""
    left = select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study._study_id, TRIALS.c.state.in_([TrialState.WAITING, TrialState.RUNNING])
    )
    with backend(study).engine.connect() as connection:
        return connection.scalar(left.limit(1)) is None


def give_back(study: optuna.Study, trial_id: int, owner: dict[str, Any]) -> bool:
    """Put a trial back among the waiting, if it is running and still this owner's.

    Number, parameters and reports stay. Returns whether it was so.
    """
    held = select(ATTRIBUTES.c.trial_id).where(
        ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == OWNER, ATTRIBUTES.c.value_json == json.dumps(owner)
    )
    back = (
        update(TRIALS)
        .where(TRIALS.c.trial_id == trial_id, TRIALS.c.state == TrialState.RUNNING, held.exists())
        .values(state=TrialState.WAITING)
    )
    with backend(study).engine.begin() as connection:
        return connection.execute(back).rowcount == 1


def release(study: optuna.Study, *, pid: int | None = None) -> int:
    """Give back the tickets of workers of this machine that are dead; returns how many.

    Args:
        pid: only those of this process, which the caller knows to be dead.
    """
    released = 0
    for trial in running(study):
        owner: dict[str, Any] = trial.user_attrs.get(OWNER, {})
        if owner.get("host") != socket.gethostname():
            continue
        if owner["pid"] == pid or (pid is None and not _alive(owner["pid"])):
            released += give_back(study, trial._trial_id, owner)
    return released


def held(study: optuna.Study) -> list[str]:
    """Who holds the running trials, in words."""
    described = []
    for trial in running(study):
        owner = trial.user_attrs.get(OWNER)
        holder = f"process {owner['pid']} on {owner['host']}" if owner else "something other than fmnist-search"
        described.append(f"trial {trial.number} by {holder}")
    return described


def running(study: optuna.Study) -> list[FrozenTrial]:
    """The trials whose tickets are held, by number."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def backend(study: optuna.Study) -> RDBStorage:
    """The database under Optuna's cache."""
    storage: RDBStorage = study._storage._backend  # type: ignore[attr-defined]
    return storage


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
