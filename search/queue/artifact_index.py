"""What a trial has as artifacts, on record as Optuna has it: `optuna.artifacts` and optuna-dashboard list them.

No file is written for them. `search.artifact_store` draws the pictures, and finds the checkpoint where it is.
"""

import json
from typing import NamedTuple
from uuid import uuid4

from optuna.trial import TrialState
from sqlalchemy import Connection, delete, insert, select

from search.database.optuna_schema import SYSTEM_ATTRIBUTES, TRIALS, read_attribute
from search.study.record import CHECKPOINT

CURVE, CONFUSION = "learning-curve.svg", "confusion-matrix.svg"

_KEY = "artifacts:"  # as optuna.artifacts.upload_artifact begins the names of system attributes


class Registered(NamedTuple):
    """An artifact: of which study and trial, and its file's name."""

    study_id: int
    trial_id: int
    name: str


def register(connection: Connection, trial_id: int, state: TrialState) -> None:
    """List the artifacts of a trial that ends in that state; a part of the transaction that ends it.

    A checkpoint is listed if the trial is complete: that of another is removed at once.
    """
    record = read_attribute(connection, trial_id, CHECKPOINT)
    if record is None:
        return
    files = {CURVE: "image/svg+xml", CONFUSION: "image/svg+xml"}
    if state == TrialState.COMPLETE:
        files[json.loads(record)["name"]] = "application/octet-stream"
    rows = []
    for place, (name, kind) in enumerate(files.items()):
        artifact_id = f"{place}{str(uuid4())[1:]}"  # by which they are in this order whoever lists them
        meta = {"artifact_id": artifact_id, "filename": name, "mimetype": kind, "encoding": None}
        stored = json.dumps(json.dumps(meta))  # Optuna's is a string of JSON, and each attribute is stored in JSON
        rows.append({"trial_id": trial_id, "key": _KEY + artifact_id, "value_json": stored})
    connection.execute(insert(SYSTEM_ATTRIBUTES), rows)


def unregister(connection: Connection, trial_id: int, name: str | None) -> None:
    """Take a file off the list; a part of the transaction that does so with the trial's record."""
    mine = (SYSTEM_ATTRIBUTES.c.trial_id == trial_id) & SYSTEM_ATTRIBUTES.c.key.startswith(_KEY)
    rows = connection.execute(select(SYSTEM_ATTRIBUTES.c.key, SYSTEM_ATTRIBUTES.c.value_json).where(mine)).all()
    named = [row.key for row in rows if (meta := _meta(row.value_json)) and meta["filename"] == name]
    connection.execute(delete(SYSTEM_ATTRIBUTES).where(mine, SYSTEM_ATTRIBUTES.c.key.in_(named)))


def registered(connection: Connection, artifact_id: str) -> Registered | None:
    """The artifact of that id; None if no trial has it."""
    columns = (TRIALS.c.study_id, TRIALS.c.trial_id, SYSTEM_ATTRIBUTES.c.value_json)
    query = select(*columns).join(TRIALS, TRIALS.c.trial_id == SYSTEM_ATTRIBUTES.c.trial_id)
    row = connection.execute(query.where(SYSTEM_ATTRIBUTES.c.key == _KEY + artifact_id)).first()
    meta = _meta(row.value_json) if row else None
    return Registered(row.study_id, row.trial_id, meta["filename"]) if row and meta else None


def _meta(stored: str) -> dict[str, str] | None:
    """An artifact's description; None if the dashboard took it off its list."""
    meta: dict[str, str] | None = json.loads(json.loads(stored))
    return meta
