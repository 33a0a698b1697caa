"""Which checkpoints of a study are kept: those of its best trials and those that are still needed."""

import json
import re
from pathlib import Path

import optuna
from optuna.trial import TrialState
from sqlalchemy import select, update

from search import artifact_meta
from search.artifacts import Artifacts
from search.finalists import BEST
from search.record import CHECKPOINT
from search.study import MARK, artifacts_of, finalists_of
from search.tables import ATTRIBUTES, TRIALS, VALUES, backend

DROPPED = '"name": null'  # in the attribute of a trial whose checkpoint was removed
FILE = re.compile(r"\.?trial-(\d+)-epoch-.*")  # a checkpoint, or one that was being written


def drop_beaten(study: optuna.Study, artifacts: Artifacts, keep: int) -> int:
    """Remove the checkpoints of finished trials that are not among the best `keep` complete ones; returns how many.

    Those of trials that wait or run stay. A trial that is beaten stays so, whatever
    others finish meanwhile, so any process may do this at any time.
    """
    named = (
        select(TRIALS.c.trial_id, TRIALS.c.state, ATTRIBUTES.c.value_json)
        .join(ATTRIBUTES, (ATTRIBUTES.c.trial_id == TRIALS.c.trial_id) & (ATTRIBUTES.c.key == CHECKPOINT))
        .outerjoin(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study._study_id, ATTRIBUTES.c.value_json.not_like(f"%{DROPPED}%"))
        .where(TRIALS.c.state.in_([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]))
        .order_by(VALUES.c.value.desc(), TRIALS.c.number)
    )
    with backend(study).engine.connect() as connection:
        rows = connection.execute(named).all()
    complete = [row for row in rows if row.state == TrialState.COMPLETE]
    beaten = sorted(set(rows) - set(complete[:keep]))
    for row in beaten:
        stored = json.loads(row.value_json)
        mine = (ATTRIBUTES.c.trial_id == row.trial_id) & (ATTRIBUTES.c.key == CHECKPOINT)
        with backend(study).engine.begin() as connection:
            dropped = json.dumps(stored | {"name": None})
            connection.execute(update(ATTRIBUTES).where(mine).values(value_json=dropped))
            artifact_meta.unregister(connection, row.trial_id, stored["name"])
        artifacts.remove(stored["name"])
    return len(beaten)


def drop_orphans(study: optuna.Study, artifacts: Artifacts) -> int:
    """Remove checkpoints that no trial names, left behind by processes that died; returns how many."""
    files = artifacts.names()  # before the trials: what is named after it was looked for is not touched
    trials = study.get_trials(deepcopy=False)
    named = {trial.user_attrs.get(CHECKPOINT, {}).get("name") for trial in trials}
    running = {trial.number for trial in trials if trial.state == TrialState.RUNNING}
    orphans = [
        name for name in files if (match := FILE.fullmatch(name)) and name not in named and int(match[1]) not in running
    ]
    for name in orphans:
        artifacts.remove(name)
    return len(orphans)


def delete(study: optuna.Study, folder: Path) -> None:
    """Delete a study, its finalists, checkpoints and report. Workers that are at it find their tickets lost and end.

    Args:
        folder: the study's, where its report is.
    """
    if finalists := finalists_of(study):
        delete(finalists, folder.parent / finalists.study_name)
    artifacts = artifacts_of(study, folder)
    files = artifacts.names()
    optuna.delete_study(study_name=study.study_name, storage=study._storage)
    for name in files:
        if FILE.fullmatch(name) or name == MARK:
            artifacts.remove(name)
    for written in ("report.html", BEST):
        (folder / written).unlink(missing_ok=True)
    for left in (folder / "checkpoints", folder):
        if left.is_dir() and not any(left.iterdir()):
            left.rmdir()
