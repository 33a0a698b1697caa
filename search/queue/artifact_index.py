"""What a trial has as artifacts, on record as Optuna has it: `optuna.artifacts` and optuna-dashboard list them.

No file is written for them. `search.dashboard.artifacts` draws the pictures, and finds the checkpoint where it is.
"""

import json
from typing import NamedTuple
from uuid import uuid4

from optuna.trial import TrialState
from sqlalchemy import Connection

from search.database.optuna_schema import (
    TrialKey,
    add_system_attributes,
    find_system_attribute,
    read_attribute,
    remove_system_attributes,
    system_attributes,
)
from search.study.record import CHECKPOINT, parse_saved

CURVE, CONFUSION = "learning-curve.svg", "confusion-matrix.svg"

_KEY = "artifacts:"  # as optuna.artifacts.upload_artifact begins the names of system attributes


class Registered(NamedTuple):
    """An artifact: of which study and trial, and its file's name."""

    study_id: int
    trial_id: int
    name: str


def register(connection: Connection, trial: TrialKey, state: TrialState) -> None:
    """List the artifacts of a trial that ends in that state; a part of the transaction that ends it.

    A checkpoint is listed if the trial is complete: that of another is removed at once.
    """
    stored = read_attribute(connection, trial.trial_id, CHECKPOINT)
    if stored is None:
        return
    name = parse_saved(stored, trial.number)["name"]
    files = {CURVE: "image/svg+xml", CONFUSION: "image/svg+xml"}
    if state == TrialState.COMPLETE and name is not None:
        files[name] = "application/octet-stream"
    listed = {}
    for place, (file, kind) in enumerate(files.items()):
        artifact_id = f"{place}{str(uuid4())[1:]}"  # by which they are in this order whoever lists them
        meta = {"artifact_id": artifact_id, "filename": file, "mimetype": kind, "encoding": None}
        listed[_KEY + artifact_id] = json.dumps(meta)  # Optuna's is a string of JSON
    add_system_attributes(connection, trial.trial_id, listed)


def unregister(connection: Connection, trial_id: int, name: str | None) -> None:
    """Take a file off the list; a part of the transaction that does so with the trial's record."""
    listed = system_attributes(connection, trial_id, _KEY)
    named = [key for key, value in listed.items() if (meta := json.loads(value)) and meta["filename"] == name]
    remove_system_attributes(connection, trial_id, named)


def registered(connection: Connection, artifact_id: str) -> Registered | None:
    """The artifact of that id; None if no trial has it."""
    found = find_system_attribute(connection, _KEY + artifact_id)
    if found is None:
        return None
    study_id, trial_id, value = found
    meta = json.loads(value)  # None where the dashboard took it off its list
    return Registered(study_id, trial_id, meta["filename"]) if meta else None
