"""Access to Optuna's tables and private attributes, where its public interface does not suffice.

No other module uses them; a test checks that. Verified with Optuna 5.0 (schema v3.0.0.d).
"""

import json
from collections import Counter
from collections.abc import Container, Mapping
from datetime import UTC, datetime, timedelta
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
from sqlalchemy import ColumnElement, Connection, DateTime, Engine, delete, exists, func, insert, select, update

_TRIALS = TrialModel.__table__
_STUDIES = StudyModel.__table__
_STUDY_ATTRIBUTES = StudyUserAttributeModel.__table__
_SYSTEM_ATTRIBUTES = TrialSystemAttributeModel.__table__
_ATTRIBUTES = TrialUserAttributeModel.__table__
_HEARTBEATS = TrialHeartbeatModel.__table__
_REPORTS = TrialIntermediateValueModel.__table__
_VALUES = TrialValueModel.__table__

CHECKED: set[str] = set()  # compatible versions, cached: Optuna loads all migration scripts to check one
FIXED_PARAMETERS = "fixed_params"  # system attribute where `Study.enqueue_trial` stores parameters


class Report(NamedTuple):
    """A trial's last intermediate value; step 0 and None before the first."""

    step: int
    value: float | None


class TrialKey(NamedTuple):
    """A trial's id in the database and its number in its study."""

    trial_id: int
    number: int


class Record(NamedTuple):
    """A trial's user attribute, as JSON in `stored`, and the trial's objective `value`, None if it has none."""

    trial_id: int
    number: int
    state: TrialState
    value: float | None
    stored: str


class StudyOfTrials(optuna.Study):
    """A read-only study of given trials; `Study.add_trials` would copy each of them."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        empty = optuna.create_study(direction="maximize")
        super().__init__(empty.study_name, empty._storage)
        self._given = trials
        for index, trial in enumerate(trials):
            trial._trial_id = index  # PED-ANOVA identifies trials by it

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:  # noqa: ARG002
        return [trial for trial in self._given if states is None or trial.state in states]


def columns_by_table() -> dict[str, set[str]]:
    """The column names of each of Optuna's tables."""
    return {table.name: set(table.columns.keys()) for table in BaseModel.metadata.tables.values()}


def check_schema(storage: RDBStorage) -> None:
    """Check that this version of Optuna can use the database's tables.

    Raises:
        RuntimeError: they belong to another version.
    """
    version = storage.get_current_version()
    if version not in CHECKED:
        storage._version_manager.check_table_schema_compatibility()
        CHECKED.add(version)


def storage_of(study: optuna.Study) -> BaseStorage:
    """A study's storage, with Optuna's cache."""
    return study._storage


def backend(study: optuna.Study) -> RDBStorage:
    """A study's storage without Optuna's cache."""
    storage: RDBStorage = study._storage._backend  # type: ignore[attr-defined]
    return storage


def engine_of(study: optuna.Study) -> Engine:
    """SQLAlchemy's engine of a study's database."""
    return backend(study).engine


def read_trial(study: optuna.Study, trial_id: int) -> FrozenTrial:
    """The trial with this id in the database."""
    return study._storage.get_trial(trial_id)


def open_trial(study: optuna.Study, trial_id: int, pruner: BasePruner) -> Trial:
    """A running trial that reports intermediate values, in its own study object because pruners keep state."""
    return Trial(optuna.Study(study.study_name, study._storage, pruner=pruner), trial_id)


def stored(trial: Trial) -> FrozenTrial:
    """A running trial as stored in the database."""
    return trial.storage.get_trial(trial._trial_id)


def set_parameters(
    study: optuna.Study, trial_id: int, values: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> None:
    """Store the parameters of a running trial, as its suggest methods would."""
    for name, value in values.items():
        allowed = distributions[name]
        study._storage.set_trial_param(trial_id, name, allowed.to_internal_repr(value), allowed)


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """A value from the trial's sampler, for any distribution."""
    return trial._suggest(name, distribution)


def count_by_state(connection: Connection, study: optuna.Study) -> Counter[TrialState]:
    """Number of a study's trials in each state."""
    by_state = select(_TRIALS.c.state, func.count()).where(_in(study)).group_by(_TRIALS.c.state)
    return Counter(dict(iter(connection.execute(by_state))))


def trials_in(connection: Connection, study: optuna.Study, state: TrialState) -> list[TrialKey]:
    """A study's trials in a state, by number."""
    trials = select(_TRIALS.c.trial_id, _TRIALS.c.number).where(_in(study), _TRIALS.c.state == state)
    return [TrialKey(*row) for row in connection.execute(trials.order_by(_TRIALS.c.number))]


def best_trial(connection: Connection, study: optuna.Study) -> int | None:
    """Id of the complete trial with the highest value; of equal ones the lowest number."""
    complete = (
        select(_TRIALS.c.trial_id)
        .join(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
        .where(_in(study), _TRIALS.c.state == TrialState.COMPLETE)
        .order_by(_VALUES.c.value.desc(), _TRIALS.c.number)
    )
    found: int | None = connection.scalar(complete.limit(1))
    return found


def lock_oldest_waiting(connection: Connection, study: optuna.Study, *, without: str, first: str) -> TrialKey | None:
    """Lock and return the first waiting trial of a study that no other transaction has locked.

    Args:
        without: skip trials that have this user attribute.
        first: prefer trials that have this user attribute.
    """
    waiting = (
        select(_TRIALS.c.trial_id, _TRIALS.c.number)
        .where(_in(study), _TRIALS.c.state == TrialState.WAITING, _lacks(without))
        .order_by(_lacks(first), _TRIALS.c.number)
    )
    row = connection.execute(waiting.limit(1).with_for_update(of=_TRIALS, skip_locked=True)).first()
    return TrialKey(*row) if row else None


def lock_trial(connection: Connection, trial_id: int, *, skip_locked: bool = False) -> TrialState | None:
    """Lock a trial until this transaction ends, and return its state; None if there is no such trial.

    Read the trial's other rows after this call, not in the same statement: in PostgreSQL a statement that waits for
    the lock sees rows as they were before the wait.

    Args:
        skip_locked: return None instead of waiting if another transaction holds the lock.
    """
    state = select(_TRIALS.c.state).where(_TRIALS.c.trial_id == trial_id)
    found: TrialState | None = connection.scalar(state.with_for_update(skip_locked=skip_locked))
    return found


def lock_study(connection: Connection, study: optuna.Study) -> int:
    """Keep others from adding trials until this transaction ends, and return the number of the next trial."""
    mine = select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == study._study_id)
    connection.execute(mine.with_for_update())
    return connection.scalar(select(func.count()).where(_in(study))) or 0


def add_waiting(connection: Connection, study: optuna.Study, number: int, fixed: Mapping[str, Any]) -> None:
    """Add a waiting trial with the parameters `fixed` to a study that the caller has locked."""
    trial = insert(_TRIALS).values(study_id=study._study_id, number=number, state=TrialState.WAITING)
    key: Any = connection.execute(trial).inserted_primary_key
    if fixed:
        add_system_attributes(connection, key[0], {FIXED_PARAMETERS: fixed})


def set_state(connection: Connection, trial_id: int, state: TrialState) -> None:
    """Set the state, and the start or end time, of a trial that the caller has locked."""
    times = {"datetime_start": _utc_now()} if state == TrialState.RUNNING else {}
    times |= {"datetime_complete": _utc_now()} if state.is_finished() else {}
    connection.execute(update(_TRIALS).where(_TRIALS.c.trial_id == trial_id).values(state=state, **times))


def set_value(connection: Connection, trial_id: int, value: float) -> None:
    """Store a trial's objective value."""
    number, kind = TrialValueModel.value_to_stored_repr(value)  # databases differ in whether they store infinity
    connection.execute(insert(_VALUES).values(trial_id=trial_id, objective=0, value=number, value_type=kind))


def write_study_attribute(connection: Connection, study: optuna.Study, key: str, value: Any) -> None:
    """Set a user attribute of a study, which the caller has locked."""
    mine = (_STUDY_ATTRIBUTES.c.study_id == study._study_id) & (_STUDY_ATTRIBUTES.c.key == key)
    connection.execute(delete(_STUDY_ATTRIBUTES).where(mine))
    row = {"study_id": study._study_id, "key": key, "value_json": json.dumps(value)}
    connection.execute(insert(_STUDY_ATTRIBUTES).values(**row))


def read_attribute(connection: Connection, trial_id: int, key: str) -> str | None:
    """A user attribute of a trial as stored JSON; None if the trial lacks it."""
    value = select(_ATTRIBUTES.c.value_json).where(_ATTRIBUTES.c.trial_id == trial_id, _ATTRIBUTES.c.key == key)
    found: str | None = connection.scalar(value)
    return found


def write_attribute(connection: Connection, trial_id: int, key: str, value: Any) -> str:
    """Set a user attribute of a trial in any state, and return the stored JSON.

    The caller must have locked the trial: two concurrent writers would leave two rows.
    """
    connection.execute(delete(_ATTRIBUTES).where(_ATTRIBUTES.c.trial_id == trial_id, _ATTRIBUTES.c.key == key))
    stored = json.dumps(value)
    connection.execute(insert(_ATTRIBUTES).values(trial_id=trial_id, key=key, value_json=stored))
    return stored


def remove_attribute(connection: Connection, trial_id: int, key: str) -> None:
    """Remove a user attribute of a trial, which the caller has locked."""
    connection.execute(delete(_ATTRIBUTES).where(_ATTRIBUTES.c.trial_id == trial_id, _ATTRIBUTES.c.key == key))


def best_by_step(connection: Connection, study: optuna.Study) -> dict[int, float]:
    """The highest intermediate value of any trial of a study at each step."""
    best = (
        select(_REPORTS.c.step, func.max(_REPORTS.c.intermediate_value))
        .join(_TRIALS, _TRIALS.c.trial_id == _REPORTS.c.trial_id)
        .where(_in(study), _REPORTS.c.intermediate_value.is_not(None))
        .group_by(_REPORTS.c.step)
    )
    return dict(iter(connection.execute(best)))


def ends(connection: Connection, study: optuna.Study) -> list[tuple[int, int, float]]:
    """Number, last step and objective value of each complete trial of a study."""
    complete = (
        select(_TRIALS.c.number, func.max(_REPORTS.c.step), _VALUES.c.value)
        .join(_REPORTS, _REPORTS.c.trial_id == _TRIALS.c.trial_id)
        .join(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
        .where(_in(study), _TRIALS.c.state == TrialState.COMPLETE, _VALUES.c.value.is_not(None))
        .group_by(_TRIALS.c.number, _VALUES.c.value)
    )
    return [tuple(row) for row in connection.execute(complete)]


def last_report(connection: Connection, trial_id: int) -> Report:
    """The trial's last intermediate value."""
    reports = select(_REPORTS.c.step, _REPORTS.c.intermediate_value).where(_REPORTS.c.trial_id == trial_id)
    row = connection.execute(reports.order_by(_REPORTS.c.step.desc()).limit(1)).first()
    return Report(row.step, row.intermediate_value) if row else Report(0, None)


def records(
    connection: Connection,
    study: optuna.Study,
    key: str,
    *,
    state: TrialState | None = None,
    without: str | None = None,
) -> list[Record]:
    """One user attribute of all trials of a study that have it, by trial number.

    Args:
        state: only trials in this state.
        without: skip trials that have this user attribute.
    """
    found = (
        select(_TRIALS.c.trial_id, _TRIALS.c.number, _TRIALS.c.state, _VALUES.c.value, _ATTRIBUTES.c.value_json)
        .join(_ATTRIBUTES, (_ATTRIBUTES.c.trial_id == _TRIALS.c.trial_id) & (_ATTRIBUTES.c.key == key))
        .outerjoin(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
        .where(_in(study))
        .order_by(_TRIALS.c.number)
    )
    if state is not None:
        found = found.where(_TRIALS.c.state == state)
    if without is not None:
        found = found.where(_lacks(without))
    return [Record(*row) for row in connection.execute(found)]


def add_system_attributes(connection: Connection, trial_id: int, values: Mapping[str, Any]) -> None:
    """Add system attributes to a trial that has none with these keys."""
    rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in values.items()]
    connection.execute(insert(_SYSTEM_ATTRIBUTES), rows)


def system_attributes(connection: Connection, trial_id: int, prefix: str) -> dict[str, Any]:
    """The system attributes of a trial whose keys start with `prefix`."""
    mine = (_SYSTEM_ATTRIBUTES.c.trial_id == trial_id) & _SYSTEM_ATTRIBUTES.c.key.startswith(prefix)
    rows = connection.execute(select(_SYSTEM_ATTRIBUTES.c.key, _SYSTEM_ATTRIBUTES.c.value_json).where(mine))
    return {row.key: json.loads(row.value_json) for row in rows}


def remove_system_attributes(connection: Connection, trial_id: int, keys: list[str]) -> None:
    """Remove system attributes of a trial."""
    mine = (_SYSTEM_ATTRIBUTES.c.trial_id == trial_id) & _SYSTEM_ATTRIBUTES.c.key.in_(keys)
    connection.execute(delete(_SYSTEM_ATTRIBUTES).where(mine))


def find_system_attribute(connection: Connection, key: str) -> tuple[int, int, Any] | None:
    """Study id, trial id and value of a system attribute in any study; None if there is none with that key."""
    columns = (_TRIALS.c.study_id, _TRIALS.c.trial_id, _SYSTEM_ATTRIBUTES.c.value_json)
    query = select(*columns).join(_TRIALS, _TRIALS.c.trial_id == _SYSTEM_ATTRIBUTES.c.trial_id)
    row = connection.execute(query.where(_SYSTEM_ATTRIBUTES.c.key == key)).first()
    return (row.study_id, row.trial_id, json.loads(row.value_json)) if row else None


def start_heartbeat(connection: Connection, trial_id: int) -> None:
    """Set a trial's heartbeat to now, replacing an earlier one."""
    connection.execute(delete(_HEARTBEATS).where(_HEARTBEATS.c.trial_id == trial_id))
    connection.execute(insert(_HEARTBEATS).values(trial_id=trial_id, heartbeat=_now(connection)))


def renew_heartbeat(connection: Connection, trial_id: int, key: str, stored: str) -> None:
    """Set a trial's heartbeat to now if its user attribute `key` still has the JSON value `stored`."""
    unchanged = select(_ATTRIBUTES.c.trial_id).where(
        _ATTRIBUTES.c.trial_id == trial_id, _ATTRIBUTES.c.key == key, _ATTRIBUTES.c.value_json == stored
    )
    mine = update(_HEARTBEATS).where(_HEARTBEATS.c.trial_id == trial_id, unchanged.exists())
    connection.execute(mine.values(heartbeat=_now(connection)))


def silence(connection: Connection, trial_id: int) -> timedelta | None:
    """Time since a trial's last heartbeat; None if it has none."""
    beats = select(_HEARTBEATS.c.heartbeat, _now(connection).label("now")).where(_HEARTBEATS.c.trial_id == trial_id)
    beat = connection.execute(beats).first()
    return beat.now - beat.heartbeat if beat else None


def _lacks(key: str) -> ColumnElement[bool]:
    other = _ATTRIBUTES.alias()
    return ~exists().where(other.c.trial_id == _TRIALS.c.trial_id, other.c.key == key)


def _in(study: optuna.Study) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = _TRIALS.c.study_id == study._study_id
    return condition


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # Optuna stores naive UTC times


def _now(connection: Connection) -> Any:
    # The database's clock, in UTC: heartbeats then do not depend on the machines' clocks.
    if connection.dialect.name == "postgresql":
        return func.timezone("UTC", func.clock_timestamp(), type_=DateTime)
    return func.now()
