"""Optuna's own tables and private attributes, for what its public interface has no call for.

Nothing else in this package touches them, and a test looks. Verified with Optuna 5.0 (schema v3.0.0.d).
"""

import json
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import (
    BaseModel,
    StudyModel,
    StudyUserAttributeModel,
    TrialHeartbeatModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import ColumnElement, Connection, DateTime, Engine, delete, exists, func, insert, select

TRIALS = TrialModel.__table__
STUDIES = StudyModel.__table__
STUDY_ATTRIBUTES = StudyUserAttributeModel.__table__
SYSTEM_ATTRIBUTES = TrialSystemAttributeModel.__table__
ATTRIBUTES = TrialUserAttributeModel.__table__
HEARTBEATS = TrialHeartbeatModel.__table__
REPORTS = TrialIntermediateValueModel.__table__
VALUES = TrialValueModel.__table__

CHECKED: set[str] = set()  # versions that were found good: to compare one, Optuna runs all of its migration scripts
FIXED_PARAMETERS = "fixed_params"  # the system attribute in which `Study.enqueue_trial` keeps them


class Report(NamedTuple):
    """A trial's last report; step 0 and no value before the first."""

    step: int
    value: float | None


class StudyOfTrials(optuna.Study):
    """A study of given trials, for what only reads them: `Study.add_trials` would copy each of them."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        empty = optuna.create_study(direction="maximize")
        super().__init__(empty.study_name, empty._storage)
        self._given = trials
        for place, trial in enumerate(trials):
            trial._trial_id = place  # PED-ANOVA tells them apart by it

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:  # noqa: ARG002
        return [trial for trial in self._given if states is None or trial.state in states]


def columns_by_table() -> dict[str, set[str]]:
    """Optuna's tables, each with the names of its columns."""
    return {table.name: set(table.columns.keys()) for table in BaseModel.metadata.tables.values()}


def check_schema(storage: RDBStorage) -> None:
    """Raise RuntimeError if a database's tables are those of another version of Optuna."""
    version = storage.get_current_version()
    if version not in CHECKED:
        storage._version_manager.check_table_schema_compatibility()
        CHECKED.add(version)


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage that a study is read and written through, with Optuna's cache."""
    return study._storage


def backend(study: optuna.Study) -> RDBStorage:
    """The database under that cache."""
    storage: RDBStorage = study._storage._backend  # type: ignore[attr-defined]
    return storage


def engine_of(study: optuna.Study) -> Engine:
    """The connections to a study's database."""
    return backend(study).engine


def id_of(study: optuna.Study) -> int:
    """A study's key in its database."""
    return study._study_id


def in_study(study: optuna.Study) -> ColumnElement[bool]:
    """The rows of TRIALS that are a study's, as a condition."""
    condition: ColumnElement[bool] = TRIALS.c.study_id == study._study_id
    return condition


def has_attribute(key: str) -> ColumnElement[bool]:
    """The rows of TRIALS whose trial has a user attribute of that name, as a condition."""
    other = ATTRIBUTES.alias()
    return exists().where(other.c.trial_id == TRIALS.c.trial_id, other.c.key == key)


def read_trial(study: optuna.Study, trial_id: int) -> FrozenTrial:
    """One trial."""
    return study._storage.get_trial(trial_id)


def open_trial(study: optuna.Study, trial_id: int, pruner: BasePruner) -> Trial:
    """A running trial to report to, in a study object of its own: pruners keep state."""
    return Trial(optuna.Study(study.study_name, study._storage, pruner=pruner), trial_id)


def stored(trial: Trial) -> FrozenTrial:
    """A running trial as it stands in the database."""
    return trial.storage.get_trial(trial._trial_id)


def set_parameters(
    study: optuna.Study, trial_id: int, values: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> None:
    """Store the parameters of a running trial, as its suggest methods would."""
    for name, value in values.items():
        allowed = distributions[name]
        study._storage.set_trial_param(trial_id, name, allowed.to_internal_repr(value), allowed)


def is_contained(value: float, distribution: BaseDistribution) -> bool:
    """Whether a number is in a distribution's range, and on one of its steps."""
    return distribution._contains(value)


def as_stored(value: float) -> dict[str, Any]:
    """The columns of VALUES for a trial's value: databases have no infinity in common."""
    number, kind = TrialValueModel.value_to_stored_repr(value)
    return {"objective": 0, "value": number, "value_type": kind}


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
    """Set a user attribute of a study, which the caller has locked."""
    mine = (STUDY_ATTRIBUTES.c.study_id == study_id) & (STUDY_ATTRIBUTES.c.key == key)
    connection.execute(delete(STUDY_ATTRIBUTES).where(mine))
    connection.execute(insert(STUDY_ATTRIBUTES).values(study_id=study_id, key=key, value_json=json.dumps(value)))


def read_attribute(connection: Connection, trial_id: int, key: str) -> str | None:
    """A user attribute of a trial as it is stored, in JSON; None if it has none of that name."""
    value = select(ATTRIBUTES.c.value_json).where(ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == key)
    found: str | None = connection.scalar(value)
    return found


def write_attribute(connection: Connection, trial_id: int, key: str, value: Any) -> str:
    """Set a user attribute of a trial, whatever state it is in; returns what is stored.

    The caller has locked the trial: of two that write at once, the second would add a row beside the first's.
    """
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
