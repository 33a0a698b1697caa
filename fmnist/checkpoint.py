"""A trained network in a file: written atomically, loaded as weights only.

The file holds the scored weights, what made them (hyperparameters, seed, scores with
their split, data set, versions, git commit) and, for a training that is not at its end,
what it needs to go on. Nothing in it is ever unpickled into an object, a digest shows any
changed byte, and all of it is checked before a network is built of it.
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
from fmnist.errors import CheckpointError as CheckpointError  # for whoever reads a checkpoint
from fmnist.files import write_whole
from fmnist.hyperparameters import Hyperparameters, ScoreOn
from fmnist.own_network import OwnNetwork, Source, of_record
from fmnist.training import EpochMetrics, Training
from fmnist.tta import with_tta

FORMAT = "fmnist-search checkpoint 3"
WITHOUT_DIGEST = "fmnist-search checkpoint 2"  # the format before; its files are read, and no longer written
ZIP = b"PK\3\4"  # at the very beginning


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    weights: the state of the scored network. resume: the rest of the training's state,
    None once the training is at its end. made_with: versions, device, precision and git commit.
    digest: SHA-256 of the file up to it; None of a file of the format without one.
    source: of a user's own network that is in a file. tta: with which the scores were made.
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
            NetworkError: it is the user's own, and its code is not here, or not what is on record.
            CheckpointError: the weights are not those of that network.
        """
        own = self.own_network()
        network = own.build(self.hyperparameters.network) if own else build(self.hyperparameters)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:  # of a user's own, whose shapes were not known before
            raise CheckpointError(_other_weights(self.architecture)) from error
        return with_tta(network, self.tta).eval()

    def own_network(self) -> OwnNetwork | None:
        """The user's own network, if it is what is on record; None of one of ours."""
        return of_record(self.architecture, self.source) if is_own(self.architecture) else None


def _other_weights(architecture: str) -> str:
    return f"{architecture}: makes other weights than those of the checkpoint; restore it as it was in the training"


def save(path: Path | str, training: Training, score_on: ScoreOn, data: DataSet) -> None:
    """Write the training as it stands. A reader sees the former file or the whole new one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the former file stays.
    """
    write_whole(Path(path), dump(training, score_on, data))


def dump(training: Training, score_on: ScoreOn, data: DataSet) -> bytes:
    """The training as it stands, as the content of a checkpoint file."""
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
    """A checkpoint as plain values and tensors; `checked` is the way back."""
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
    """Read a checkpoint with its tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read or was not written by `save`.
    """
    return parse(read(path), str(path))


def read(path: Path | str) -> bytes:
    """The content of a file that may be a checkpoint; of another kind only its beginning.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(len(ZIP))
            if content == ZIP:  # else it is not ours, and may be endless, as /dev/zero is
                content += file.read()
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; name a checkpoint that fmnist-search wrote"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: too large for the memory of this machine") from error
    return content


def parse(content: bytes, name: str) -> Checkpoint:
    """Read the content of a checkpoint file; `name` is what an error calls it.

    Raises:
        CheckpointError: it was not written by `save`, or is damaged.
    """
    return of_archive(unpack(content, name), content, name)


def unpack(content: bytes, name: str) -> dict[str, Any]:
    """The plain values and tensors in the content of a file; "format" names what they are, and nothing is checked yet.

    Raises:
        CheckpointError: it is no archive of ours, or is damaged.
    """
    try:
        payload = archive.read(content)
    except Exception as error:  # of a dozen kinds
        raise CheckpointError(f"{name}: damaged, or not a checkpoint of fmnist-search") from error
    found = payload.get("format") if isinstance(payload, dict) else None
    return payload if isinstance(found, str) else {"format": ""}


def of_archive(payload: dict[str, Any], content: bytes, name: str) -> Checkpoint:
    """The checkpoint that was unpacked from the content of a file.

    Raises:
        CheckpointError: it is none.
    """
    digest = archive.digest_of(content)
    expected = WITHOUT_DIGEST if digest is None else FORMAT
    if payload.pop("format") != expected:
        raise CheckpointError(f"{name}: not a checkpoint of fmnist-search ('{expected}' is not in it)")
    try:
        return checked(payload, len(content), digest)
    except (ValueError, RecursionError) as error:  # pydantic's error is a ValueError
        raise CheckpointError(f"{name}: its content does not fit this version of fmnist-search") from error


def checked(values: Any, size: int, digest: str | None) -> Checkpoint:
    """The checkpoint of what `plain` returned, in a file of `size` bytes.

    Raises:
        ValueError, RecursionError: it is none.
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
    """The SHA-256 of a network's weights: names and every bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resume(checkpoint: Checkpoint, device: torch.device) -> Training:
    """The training that the checkpoint interrupted, ready to go on.

    Raises:
        CheckpointError: the training was at its end, or its weights are not those of the network.
        NetworkError: it is the user's own, and its code is not here, or not what is on record.
    """
    if checkpoint.resume is None:
        raise CheckpointError(f"the training is at its end, epoch {checkpoint.hyperparameters.epochs}")
    own, precision = checkpoint.own_network(), checkpoint.made_with["precision"]
    training = Training(checkpoint.hyperparameters, checkpoint.seed, device, precision, own, checkpoint.tta)
    try:
        training.load_state_dict({"averaged": checkpoint.weights, **checkpoint.resume}, checkpoint.history)
    except (RuntimeError, ValueError) as error:  # of a user's own, whose shapes were not known before
        raise CheckpointError(_other_weights(checkpoint.hyperparameters.architecture)) from error
    return training


def made_with(training: Training) -> dict[str, Any]:
    """Versions, machine and git commit, to reproduce the result."""
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
    """The commit of the checkout that this code runs from; None if it cannot be told."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or not allowed to look
        return None


def size_of(saved: Checkpoint) -> int:
    """Bytes of a checkpoint's weights."""
    tensors = [*saved.weights.values()]
    return sum(tensor.nbytes for tensor in (distinct(tensors) if is_own(saved.architecture) else tensors))
