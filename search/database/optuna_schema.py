"""Optuna's own tables, for what its interface has no call for: transactions over several of them."""

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    StudyModel,
    StudyUserAttributeModel,
    TrialHeartbeatModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import TrialState
from sqlalchemy import Connection, DateTime, delete, func, insert, select

TRIALS = TrialModel.__table__
STUDIES = StudyModel.__table__
STUDY_ATTRIBUTES = StudyUserAttributeModel.__table__
SYSTEM_ATTRIBUTES = TrialSystemAttributeModel.__table__
ATTRIBUTES = TrialUserAttributeModel.__table__
HEARTBEATS = TrialHeartbeatModel.__table__
REPORTS = TrialIntermediateValueModel.__table__
VALUES = TrialValueModel.__table__


class Report(NamedTuple):
    """A trial's last report; step 0 and no value before the first."""

    step: int
    value: float | None


def backend(study: optuna.Study) -> RDBStorage:
    """The database under Optuna's cache."""
    storage: RDBStorage = study._storage._backend  # type: ignore[attr-defined]
    return storage


def lock_trial(connection: Connection, trial_id: int, *, skip_locked: bool = False) -> TrialState | None:
    """Keep all others from changing the trial until this transaction ends; returns its state.

    What belongs to the trial is to be read after it: PostgreSQL shows what was committed
    before each statement, so one that waits for the lock itself may join a row of before.

    Args:
        skip_locked: return None, as for a trial that is not there, if another has the lock.
    """
    state = select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id)
    found: TrialState | None = connection.scalar(state.with_for_update(skip_locked=skip_locked))
    return found


def lock_study(connection: Connection, study_id: int) -> int:
    """Keep all others from adding trials until this transaction ends; returns the number of the next trial."""
    connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id).with_for_update())
    return connection.scalar(select(func.count()).where(TRIALS.c.study_id == study_id)) or 0


def write_study_attribute(connection: Connection, study_id: int, key: str, value: Any) -> None:
    """Set a user attribute of a study."""
    mine = (STUDY_ATTRIBUTES.c.study_id == study_id) & (STUDY_ATTRIBUTES.c.key == key)
    connection.execute(delete(STUDY_ATTRIBUTES).where(mine))
    connection.execute(insert(STUDY_ATTRIBUTES).values(study_id=study_id, key=key, value_json=json.dumps(value)))


def read_attribute(connection: Connection, trial_id: int, key: str) -> str | None:
    """A user attribute of a trial as it is stored, in JSON; None if it has none of that name."""
    value = select(ATTRIBUTES.c.value_json).where(ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == key)
    found: str | None = connection.scalar(value)
    return found


def write_attribute(connection: Connection, trial_id: int, key: str, value: Any) -> str:
    """Set a user attribute of a trial, whatever state it is in; returns what is stored."""
    connection.execute(delete(ATTRIBUTES).where(ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == key))
    stored = json.dumps(value)
    connection.execute(insert(ATTRIBUTES).values(trial_id=trial_id, key=key, value_json=stored))
    return stored


def last_report(connection: Connection, trial_id: int) -> Report:
    """The trial's last intermediate value."""
    reports = select(REPORTS.c.step, REPORTS.c.intermediate_value).where(REPORTS.c.trial_id == trial_id)
    row = connection.execute(reports.order_by(REPORTS.c.step.desc()).limit(1)).first()
    return Report(row.step, row.intermediate_value) if row else Report(0, None)


def utc_now() -> datetime:
    """This machine's time as Optuna stores it: UTC, without saying so."""
    return datetime.now(UTC).replace(tzinfo=None)


def now(connection: Connection) -> Any:
    """The database's own clock, UTC, as an expression: no two machines need to agree on the time."""
    if connection.dialect.name == "postgresql":
        return func.timezone("UTC", func.clock_timestamp(), type_=DateTime)
    return func.now()
