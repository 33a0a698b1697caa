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
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fmnist import archive
from fmnist.architectures import build
from fmnist.choices import in_file, is_own
from fmnist.classes import CLASSES
from fmnist.data import DataSet
from fmnist.device import Precision
from fmnist.errors import CheckpointError as CheckpointError  # for whoever reads a checkpoint
from fmnist.files import write_whole
from fmnist.hyperparameters import Hyperparameters, ScoreOn
from fmnist.optimizer import MOMENTS, vector_length
from fmnist.own_network import OwnNetwork, Source, of_record
from fmnist.training import QUARTERS, EpochMetrics, Training

FORMAT = "fmnist-search checkpoint 3"
WITHOUT_DIGEST = "fmnist-search checkpoint 2"  # the format before; its files are read, and no longer written
ZIP = b"PK\3\4"  # at the very beginning

MOST_THREADS = 1024  # of torch; with a number beyond what the machine can start, it ends the process


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    weights: the state of the scored network. resume: the rest of the training's state,
    None once the training is at its end. made_with: versions, device, precision and git commit.
    digest: SHA-256 of the file up to it; None of a file of the format without one.
    source: of a user's own network that is in a file.
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

    def network(self) -> nn.Module:
        """The scored network on the CPU, in evaluation mode.

        Raises:
            NetworkError: it is the user's own, and its code is not here, or not what is on record.
            CheckpointError: the weights are not those of that network.
        """
        own = self.own_network()
        network = own.build(self.hyperparameters.network) if own else build(self.hyperparameters)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:  # of a user's own, whose shapes were not known before
            raise CheckpointError(_other_weights(self.hyperparameters.architecture)) from error
        return network.eval()

    def own_network(self) -> OwnNetwork | None:
        """The user's own network, if it is what is on record; None of one of ours."""
        own = is_own(self.hyperparameters.architecture)
        return of_record(self.hyperparameters.architecture, self.source) if own else None


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
    weights = state.pop("averaged")
    payload = {
        "format": FORMAT,
        "hyperparameters": training.hyperparameters.model_dump(),
        "seed": training.seed,
        "score_on": score_on,
        "history": [asdict(metrics) for metrics in training.history],
        "data_set": data.name,
        "data_fingerprint": data.fingerprint,
        "made_with": made_with(training),
        "weights": weights,
        "resume": None if training.finished else state,
    }
    if training.own and training.own.source:
        payload["source"] = asdict(training.own.source)
    return archive.write(payload)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint with its tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read or was not written by `save`.
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
    return parse(content, str(path))


def parse(content: bytes, name: str) -> Checkpoint:
    """Read the content of a checkpoint file; `name` is what an error calls it.

    Raises:
        CheckpointError: it was not written by `save`, or is damaged.
    """
    try:
        payload = archive.read(content)
    except Exception as error:  # of a dozen kinds
        raise CheckpointError(f"{name}: damaged, or not a checkpoint of fmnist-search") from error
    digest = archive.digest_of(content)
    expected = WITHOUT_DIGEST if digest is None else FORMAT
    found = payload.get("format") if isinstance(payload, dict) else None
    if not isinstance(found, str) or found != expected:
        raise CheckpointError(f"{name}: not a checkpoint of fmnist-search ('{expected}' is not in it)")
    try:
        stored = _Content.model_validate(payload)
        stored.check(len(content))
    except (ValueError, RecursionError) as error:  # pydantic's error is a ValueError
        raise CheckpointError(f"{name}: its content does not fit this version of fmnist-search") from error
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
    training = Training(checkpoint.hyperparameters, checkpoint.seed, device, precision, own)
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


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PerClass = Field(min_length=len(CLASSES), max_length=len(CLASSES))
State = dict[str, Tensor]


class _Scores(_Strict):
    """What `EpochMetrics` holds."""

    epoch: float = Field(gt=0, multiple_of=1 / QUARTERS)
    train_loss: float
    train_accuracy: Share
    loss: float = Field(allow_inf_nan=True)  # averaged weights may overflow where those in training do not
    correct: Count
    total: int = Field(gt=0)
    seconds: float = Field(ge=0)
    confusion: Annotated[list[Annotated[list[Count], PerClass]], PerClass]


class _MadeWith(_Strict):
    """What `made_with` returns."""

    fmnist_search: str
    torch: str
    python: str
    machine: str
    device: str
    threads: int = Field(ge=1, le=MOST_THREADS)
    precision: Precision
    git_commit: str | None


class _Source(_Strict):
    """What `Source` holds."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    text: str


class _Optimizer(_Strict):
    moments: list[Tensor]
    updates: Tensor


class _Resume(_Strict):
    network: State
    optimizer: _Optimizer
    quarters: int = Field(gt=0)
    steps: Count


class _Content(_Strict):
    """What `dump` puts into a file."""

    format: str
    hyperparameters: Hyperparameters
    seed: Count
    score_on: ScoreOn
    history: list[_Scores] = Field(min_length=1)
    data_set: str
    data_fingerprint: str
    made_with: _MadeWith
    weights: State
    resume: _Resume | None
    source: _Source | None = None

    def check(self, size: int) -> None:
        """Raise ValueError if its parts contradict each other, or would be larger than the file of `size` bytes."""
        epochs = [scores.epoch for scores in self.history]
        end = self.resume.quarters / QUARTERS if self.resume else self.hyperparameters.epochs
        if epochs != sorted(set(epochs)) or epochs[-1] != end or end > self.hyperparameters.epochs:
            raise ValueError("its epochs do not follow each other")
        if any(
            sum(map(sum, scores.confusion)) != scores.total or scores.correct > scores.total for scores in self.history
        ):
            raise ValueError("its scores do not add up")
        tensors = [*self.weights.values()]
        if self.resume:
            optimizer = self.resume.optimizer
            tensors += [*self.resume.network.values(), *optimizer.moments, optimizer.updates]
        architecture = self.hyperparameters.architecture
        if is_own(architecture):  # its shapes are known to its code alone, which is not run to read a file
            if in_file(architecture) != (self.source is not None):
                raise ValueError("it has the text of a network that is in no file, or lacks it")
            if self.source and hashlib.sha256(self.source.text.encode()).hexdigest() != self.source.sha256:
                raise ValueError("the text of its network is not what its digest says")
            # Shared weights are one tensor of several names; any others that overlap are larger than the file.
            tensors = [*{(each.data_ptr(), each.shape, each.stride(), each.dtype): each for each in tensors}.values()]
        if sum(tensor.nbytes for tensor in tensors) > size:
            raise ValueError("its tensors are larger than the file")
        if is_own(architecture):
            return
        with torch.device("meta"):  # which has shapes and takes no memory, whatever size is asked for
            network = build(self.hyperparameters)
        shapes = _shapes(network.state_dict())
        fits = _shapes(self.weights) == shapes
        if self.resume:
            vector = (torch.Size([vector_length(network.parameters())]), torch.float32)
            expected = {str(index): vector for index in range(MOMENTS[self.hyperparameters.optimizer])}
            expected["updates"] = (torch.Size([]), torch.float32)
            moments = {str(index): moment for index, moment in enumerate(self.resume.optimizer.moments)}
            fits &= _shapes(self.resume.network) == shapes
            fits &= _shapes(moments | {"updates": self.resume.optimizer.updates}) == expected
        if not fits:
            raise ValueError("its weights do not fit its hyperparameters")


def _shapes(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
