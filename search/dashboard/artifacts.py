"""The artifact store from which optuna-dashboard reads the artifacts of trials; nothing is stored twice.

Learning curves and confusion matrices are drawn from the trial's record on request; checkpoints are read from the
study's checkpoint storage. Uploads have a folder of their own.
"""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage

from fmnist.errors import CheckpointError
from search.artifacts import Artifacts
from search.dashboard.pictures import confusion_matrix, learning_curve
from search.queue.artifact_index import CONFUSION, CURVE, Registered, registered
from search.study.places import artifacts_of
from search.study.record import checkpoint_of, history_of, saved_of
from search.study.store import definition_of, load_study


class TrialArtifacts:
    """An `optuna.artifacts` store.

    Args:
        folder: returns the folder of a study.
        uploads: folder of uploaded files.
    """

    def __init__(self, storage: RDBStorage, folder: Callable[[optuna.Study], Path], uploads: Path) -> None:
        self.storage, self.folder, self.uploads = storage, folder, uploads
        self._uploaded = FileSystemArtifactStore(uploads)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The content of an artifact.

        Raises:
            ArtifactNotFound: the artifact is unknown, or its file is missing, damaged or not the recorded one.
            ArtifactError: the study's checkpoint storage is unreachable.
        """
        found = self._registered(artifact_id)
        if found is None:
            return self._uploaded.open_reader(artifact_id)
        try:
            content = self._content(found)
        except CheckpointError as error:
            raise ArtifactNotFound(str(error)) from error
        if content is None:
            raise ArtifactNotFound(f"{found.name} not found in the study's checkpoints")
        return BytesIO(content)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store an upload."""
        self.uploads.mkdir(parents=True, exist_ok=True)
        self._uploaded.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact's file; pictures have none.

        Raises:
            ArtifactNotFound: the artifact is unknown.
            ArtifactError: the study's checkpoint storage is unreachable.
        """
        found = self._registered(artifact_id)
        if found is None:
            self._uploaded.remove(artifact_id)
        elif found.name == checkpoint_of(self.storage.get_trial(found.trial_id)):
            self._files(self._study(found)).remove(found.name)

    def _registered(self, artifact_id: str) -> Registered | None:
        """The artifact as a trial registered it; None if unknown or uploaded."""
        if (self.uploads / artifact_id).is_file():
            return None
        with self.storage.engine.connect() as connection:
            return registered(connection, artifact_id)

    def _content(self, found: Registered) -> bytes | None:
        trial, study = self.storage.get_trial(found.trial_id), self._study(found)
        title, score_on, saved = f"trial {trial.number}", definition_of(study).score_on, saved_of(trial)
        if found.name == CURVE:
            return learning_curve(title, score_on, history_of(trial)).encode()
        if found.name == CONFUSION:
            return confusion_matrix(f"{title}, {score_on} images", saved.confusion if saved else []).encode()
        name, digest = (saved.name, saved.digest) if saved else (None, None)
        content = self._files(study).read(name) if name else None
        if content is not None and digest is not None:  # checked here, as fmnist.checkpoint would import torch
            body, end = content[: -len(digest)], content[-len(digest) :]
            if end != digest.encode() or hashlib.sha256(body).hexdigest() != digest:
                raise CheckpointError(f"{name}: damaged, or not what trial {trial.number} wrote")
        return content

    def _study(self, found: Registered) -> optuna.Study:
        name = self.storage.get_study_name_from_id(found.study_id)
        return load_study(self.storage, name)

    def _files(self, study: optuna.Study) -> Artifacts:
        return artifacts_of(study, self.folder(study))
