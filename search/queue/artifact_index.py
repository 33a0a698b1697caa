"""Registers a trial's artifacts in Optuna's format, so that `optuna.artifacts` and optuna-dashboard list them.

No files are written: `search.dashboard.artifacts` draws the pictures and reads the checkpoint on request.
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

_KEY = "artifacts:"  # prefix of the system attributes that optuna.artifacts.upload_artifact writes


class Registered(NamedTuple):
    """An artifact's study, trial and file name."""

    study_id: int
    trial_id: int
    name: str


def register(connection: Connection, trial: TrialKey, state: TrialState) -> None:
    """Register the artifacts of a trial that ends in `state`; part of the transaction that ends it.

    The checkpoint is registered only for a complete trial; otherwise it is about to be deleted.
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
        artifact_id = f"{place}{str(uuid4())[1:]}"  # listings are sorted by id: keep this order
        meta = {"artifact_id": artifact_id, "filename": file, "mimetype": kind, "encoding": None}
        listed[_KEY + artifact_id] = json.dumps(meta)  # Optuna stores a string that contains JSON
    add_system_attributes(connection, trial.trial_id, listed)


def unregister(connection: Connection, trial_id: int, name: str | None) -> None:
    """Remove a file from a trial's artifacts; part of the transaction that removes it from the trial's record."""
    listed = system_attributes(connection, trial_id, _KEY)
    named = [key for key, value in listed.items() if (meta := json.loads(value)) and meta["filename"] == name]
    remove_system_attributes(connection, trial_id, named)


def registered(connection: Connection, artifact_id: str) -> Registered | None:
    """The artifact with this id; None if there is none."""
    found = find_system_attribute(connection, _KEY + artifact_id)
    if found is None:
        return None
    study_id, trial_id, value = found
    meta = json.loads(value)  # None if it was deleted in the dashboard
    return Registered(study_id, trial_id, meta["filename"]) if meta else None
