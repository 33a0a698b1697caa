"""A trained network in a file: written atomically, loaded as weights only.

The file holds the scored weights, their provenance (hyperparameters, seed, scores and their split, data set, versions,
git commit) and, for an unfinished training run, the state to resume it. Loading never unpickles an object, verifies a
digest of all bytes, and validates the content before it builds a network.
"""

import hashlib
import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmnist import archive
from fmnist.architectures import build
from fmnist.checkpoint_schema import Content, distinct
from fmnist.choices import AppliedTta, is_own
from fmnist.data import DataSet
from fmnist.errors import CheckpointError as CheckpointError  # re-exported for callers
from fmnist.files import write_atomically
from fmnist.hyperparameters import Hyperparameters, ScoreOn
from fmnist.own_network import OwnNetwork, Source, of_record
from fmnist.training import EpochMetrics, Training
from fmnist.tta import with_tta

FORMAT = "fmnist-search checkpoint 3"
WITHOUT_DIGEST = "fmnist-search checkpoint 2"  # the previous format: still read, no longer written
ZIP = b"PK\3\4"  # first bytes of a file


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    weights: state of the scored network. resume: the rest of the training state; None for a finished training run.
    made_with: versions, device, precision and git commit. digest: SHA-256 of all preceding bytes; None in the format
    without one. source: content of the file of the user's own network. tta: test-time augmentation of the scores.
    """

    hyperparameters: Hyperparameters
    seed: int
    score_on: ScoreOn
    history: list[EpochMetrics]
    data_set: str
    data_fingerprint: str
    made_with: dict[str, Any]
    weights: dict[str, Any]
    resume: dict[str, Any] | None
    digest: str | None
    source: Source | None = None
    tta: AppliedTta = "none"

    @property
    def architecture(self) -> str:
        return self.hyperparameters.architecture

    def network(self) -> nn.Module:
        """The scored network on the CPU, in evaluation mode, with its test-time augmentation.

        Raises:
            NetworkError: the code of the user's own network is missing, or differs from the recorded one.
            CheckpointError: the weights do not fit the network.
        """
        own = self.own_network()
        network = own.build(self.hyperparameters.network) if own else build(self.hyperparameters)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:  # the shapes of a user's own network are unknown until it is built
            raise CheckpointError(_weights_mismatch(self.architecture)) from error
        return with_tta(network, self.tta).eval()

    def own_network(self) -> OwnNetwork | None:
        """Load the user's own network if it matches the record; None for a built-in network."""
        return of_record(self.architecture, self.source) if is_own(self.architecture) else None


def _weights_mismatch(architecture: str) -> str:
    return f"{architecture}: its weights do not match the checkpoint's; restore the code that was trained"


def save(path: Path | str, training: Training, score_on: ScoreOn, data: DataSet) -> None:
    """Write the current state of a training run. A reader sees the previous file or the complete new one.

    Raises:
        OSError: the disk is full or the folder is not writable; the previous file stays.
    """
    write_atomically(Path(path), dump(training, score_on, data))


def dump(training: Training, score_on: ScoreOn, data: DataSet) -> bytes:
    """The current state of a training run as the content of a checkpoint file."""
    state = training.state_dict()
    saved = Checkpoint(
        hyperparameters=training.hyperparameters,
        seed=training.seed,
        score_on=score_on,
        history=training.history,
        data_set=data.name,
        data_fingerprint=data.fingerprint,
        made_with=made_with(training),
        weights=state.pop("averaged"),
        resume=None if training.finished else state,
        digest=None,
        source=training.own.source if training.own else None,
        tta=training.tta,
    )
    return archive.write({"format": FORMAT, **plain(saved)})


def plain(saved: Checkpoint) -> dict[str, Any]:
    """Convert a checkpoint to plain values and tensors; `checked` is the inverse."""
    values = {
        "hyperparameters": saved.hyperparameters.model_dump(),
        "seed": saved.seed,
        "score_on": saved.score_on,
        "tta": saved.tta,
        "history": [asdict(metrics) for metrics in saved.history],
        "data_set": saved.data_set,
        "data_fingerprint": saved.data_fingerprint,
        "made_with": saved.made_with,
        "weights": saved.weights,
        "resume": saved.resume,
    }
    return values | ({"source": asdict(saved.source)} if saved.source else {})


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read or was not written by `save`.
    """
    return parse(read(path), str(path))


def read(path: Path | str) -> bytes:
    """Read a file that may be a checkpoint; of any other file, only the first bytes.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(len(ZIP))
            if content == ZIP:  # other files may be endless, such as /dev/zero
                content += file.read()
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; name a checkpoint written by fmnist-search"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: larger than the free memory; load it on a larger machine") from error
    return content


def parse(content: bytes, name: str) -> Checkpoint:
    """Read the content of a checkpoint file; `name` identifies it in errors.

    Raises:
        CheckpointError: the content was not written by `save`, or is damaged.
    """
    return of_archive(unpack(content, name), content, name)


def unpack(content: bytes, name: str) -> dict[str, Any]:
    """Read plain values and tensors from a file's content, not validated; "format" names their kind.

    Raises:
        CheckpointError: the content is not one of our archives, or is damaged.
    """
    try:
        payload = archive.read(content)
    except Exception as error:  # archive.read raises a dozen kinds
        raise CheckpointError(f"{name}: damaged, or not an fmnist-search checkpoint; use another copy") from error
    found = payload.get("format") if isinstance(payload, dict) else None
    return payload if isinstance(found, str) else {"format": ""}


def of_archive(payload: dict[str, Any], content: bytes, name: str) -> Checkpoint:
    """Validate a checkpoint unpacked from the content of a file.

    Raises:
        CheckpointError: it is invalid.
    """
    digest = archive.digest_of(content)
    expected = WITHOUT_DIGEST if digest is None else FORMAT
    if payload.pop("format") != expected:
        raise CheckpointError(
            f"{name}: not an fmnist-search checkpoint (format '{expected}' not found); name another file"
        )
    try:
        return checked(payload, len(content), digest)
    except (ValueError, RecursionError) as error:  # pydantic's error is a ValueError
        raise CheckpointError(
            f"{name}: content not valid in this version of fmnist-search; use the one that wrote it"
        ) from error


def checked(values: Any, size: int, digest: str | None) -> Checkpoint:
    """Validate what `plain` returned, read from a file of `size` bytes.

    Raises:
        ValueError, RecursionError: the values are invalid.
    """
    stored = Content.model_validate(values)
    stored.check(size)
    return Checkpoint(
        hyperparameters=stored.hyperparameters,
        seed=stored.seed,
        score_on=stored.score_on,
        history=[EpochMetrics(**dict(scores)) for scores in stored.history],
        data_set=stored.data_set,
        data_fingerprint=stored.data_fingerprint,
        made_with=dict(stored.made_with),
        weights=stored.weights,
        resume=stored.resume.model_dump() if stored.resume else None,
        digest=digest,
        source=Source(**dict(stored.source)) if stored.source else None,
        tta=stored.tta,
    )


def weights_digest(weights: dict[str, Any]) -> str:
    """SHA-256 of the names and bytes of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resume(checkpoint: Checkpoint, device: torch.device) -> Training:
    """Restore the training run that the checkpoint interrupted.

    Raises:
        CheckpointError: the training run was finished, or the weights do not fit the network.
        NetworkError: the code of the user's own network is missing, or differs from the recorded one.
    """
    if checkpoint.resume is None:
        raise CheckpointError(f"nothing to resume: training finished at epoch {checkpoint.hyperparameters.epochs}")
    own, precision = checkpoint.own_network(), checkpoint.made_with["precision"]
    training = Training(checkpoint.hyperparameters, checkpoint.seed, device, precision, own, checkpoint.tta)
    try:
        training.load_state_dict({"averaged": checkpoint.weights, **checkpoint.resume}, checkpoint.history)
    except (RuntimeError, ValueError) as error:  # the shapes of a user's own network are unknown until it is built
        raise CheckpointError(_weights_mismatch(checkpoint.hyperparameters.architecture)) from error
    return training


def made_with(training: Training) -> dict[str, Any]:
    """Versions, machine, settings and git commit needed to reproduce the result."""
    return {
        "fmnist_search": version("fmnist-search"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {platform.system()}",
        "device": str(training.device),
        "threads": torch.get_num_threads(),
        "precision": training.precision,
        "git_commit": git_commit(),
    }


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this code runs from; None if unknown."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # git is missing or has no permission
        return None


def size_of(saved: Checkpoint) -> int:
    """Bytes of a checkpoint's weights."""
    tensors = [*saved.weights.values()]
    return sum(tensor.nbytes for tensor in (distinct(tensors) if is_own(saved.architecture) else tensors))
