"""Deletion of checkpoints and studies. The checkpoints of the best and of unfinished trials are kept."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState

from fmnist.checkpoint import parse
from fmnist.errors import CheckpointError
from search.artifacts import Artifacts, Folder, open_artifacts, trial_of
from search.database.optuna_schema import (
    engine_of,
    lock_trial,
    read_attribute,
    records,
    storage_of,
    write_attribute,
)
from search.outputs import OF_A_STUDY, is_ours
from search.queue import artifact_index
from search.study.places import ARTIFACTS, KEY, MARK, below, is_own, is_owned, is_within, location_of
from search.study.record import CHECKPOINT, DROPPED, checkpoint_of, is_recorded, parse_saved, saved_of
from search.study.store import finalists_of


@dataclass(frozen=True)
class Files:
    """A study's files. folder: of its report. location: of its checkpoints."""

    study: optuna.Study
    folder: Path
    location: str

    @property
    def places(self) -> list[str]:
        """Folder and location, or just the folder if the location is below it."""
        return [str(self.folder)] + ([] if is_within(self.location, [str(self.folder)]) else [self.location])


def drop_outperformed(study: optuna.Study, artifacts: Artifacts, keep: int) -> int:
    """Delete the checkpoints of finished trials that are not among the `keep` best complete ones; return their number.

    Checkpoints of waiting and running trials stay. An outperformed trial remains so whatever others finish, so any
    process may call this at any time.
    """
    with engine_of(study).connect() as connection:
        kept = records(connection, study, CHECKPOINT, without=DROPPED)
    complete = [trial for trial in kept if trial.state == TrialState.COMPLETE and trial.value is not None]
    best = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:keep]
    removed = 0
    for trial in kept:
        if trial in best or not trial.state.is_finished():
            continue
        record = parse_saved(trial.stored, trial.number)
        name = record["name"]  # None in a record of an earlier version, which has no DROPPED
        ours = name and _is_ours(study, artifacts, name, record.get("digest"), record.get("weights"))
        with engine_of(study).begin() as connection:
            if lock_trial(connection, trial.trial_id) is None or read_attribute(connection, trial.trial_id, DROPPED):
                continue  # the study was deleted, or another process was faster
            write_attribute(connection, trial.trial_id, CHECKPOINT, record | {"name": None})
            write_attribute(connection, trial.trial_id, DROPPED, True)
            artifact_index.unregister(connection, trial.trial_id, name)
        removed += name is not None
        if ours:
            artifacts.remove(name)
    return removed


def drop_orphans(study: optuna.Study, artifacts: Artifacts) -> int:
    """Delete checkpoints that no trial names, left behind by processes that died; return their number.

    In a location that several studies share, orphans stay, because their study is unknown.
    """
    orphans = _orphans(study, artifacts)
    for name in orphans:
        artifacts.remove(name)
    return len(orphans)


def drop_partial(study: optuna.Study, artifacts: Artifacts) -> None:
    """Try to delete the partial files of killed processes; a bucket has none."""
    if isinstance(artifacts, Folder):
        with suppress(OSError):
            for name in _orphans(study, artifacts):
                if name.startswith("."):
                    artifacts.remove(name)


def _orphans(study: optuna.Study, artifacts: Artifacts) -> list[str]:
    if not is_own(study, artifacts.location):
        return []
    files = artifacts.names()  # before reading the trials, so that files written and recorded meanwhile are not listed
    trials = study.get_trials(deepcopy=False)
    named = {checkpoint_of(trial) for trial in trials}
    running = {trial.number for trial in trials if trial.state == TrialState.RUNNING}
    return [name for name in files if name not in named and trial_of(name) not in {None, *running}]


def files_of(study: optuna.Study, folder: Path, artifacts: str | None = None) -> list[Files]:
    """The files of a study and of its finalists.

    Args:
        folder: the study's folder.
        artifacts: a shared location that is searched for its checkpoints before the recorded location.
    """
    found = [Files(study, folder, _location(study, folder, artifacts))]
    if finalists := finalists_of(study):
        beside = folder.parent / finalists.study_name
        found.append(Files(finalists, beside, _location(finalists, beside, artifacts and found[0].location)))
    return found


def delete(files: Files, roots: list[str]) -> None:
    """Delete a study, and those of its files that are below one of the roots.

    Its workers lose their tickets and end. If a checkpoint cannot be deleted, the study stays.

    Raises:
        ArtifactError, OSError: a file cannot be deleted.
    """
    study, store, folder = files.study, open_artifacts(files.location), Folder(files.folder)
    marked = store if study.user_attrs[ARTIFACTS] is None else folder
    may_clear_folder = is_within(folder.location, roots) and marked.read(MARK) in (None, study.user_attrs[KEY].encode())
    may_clear_store = is_within(files.location, roots) and is_owned(study, files.location)
    if may_clear_store:
        _remove_checkpoints(study, store)
    optuna.delete_study(study_name=study.study_name, storage=storage_of(study))
    if may_clear_store:
        store.remove(MARK)
        _remove_if_empty(files.location)
    if may_clear_folder:
        for name, marks in OF_A_STUDY.items():
            if (files.folder / name).is_file() and is_ours(files.folder / name, marks):
                folder.remove(name)
        folder.remove(MARK)
        _remove_if_empty(folder.location)


def _location(study: optuna.Study, folder: Path, artifacts: str | None) -> str:
    wanted = below(artifacts, study.study_name) if artifacts else []
    return next((location for location in wanted if is_owned(study, location)), location_of(study, folder))


def _remove_checkpoints(study: optuna.Study, store: Artifacts) -> None:
    kept = [found for trial in study.get_trials(deepcopy=False) if (found := saved_of(trial))]
    if is_own(study, store.location):
        names = [name for name in store.names() if trial_of(name) is not None]
    else:
        names = [
            saved.name
            for saved in kept
            if saved.name and _is_ours(study, store, saved.name, saved.digest, saved.weights)
        ]
    for name in names:
        store.remove(name)


def _is_ours(study: optuna.Study, artifacts: Artifacts, name: str, digest: str | None, weights: str | None) -> bool:
    # In a shared location, another study may have written a file of the same name.
    if is_own(study, artifacts.location):
        return True
    content = artifacts.read(name)
    try:
        return content is not None and is_recorded(digest, weights, parse(content, name))
    except CheckpointError:
        return False


def _remove_if_empty(location: str) -> None:
    path = Path(location)
    if "://" not in location and path.is_dir() and not any(path.iterdir()):
        path.rmdir()
