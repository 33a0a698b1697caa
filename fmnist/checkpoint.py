"""A trained network in a file: written atomically, loaded as weights only.

The file holds the scored weights, what made them (hyperparameters, seed, scores with
their split, data set, versions, git commit) and, for a training that is not at its end,
what it needs to go on. Nothing in it is ever unpickled into an object.
"""

import platform
import subprocess
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from fmnist.architectures import build
from fmnist.data import DataSet
from fmnist.errors import ExpectedError
from fmnist.files import write_whole
from fmnist.hyperparameters import Hyperparameters, ScoreOn
from fmnist.training import EpochMetrics, Training

FORMAT = "fmnist-search checkpoint 2"


class CheckpointError(ExpectedError):
    """The file is absent, damaged or not ours; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    weights: the state of the scored network. resume: the rest of the training's state,
    None once the training is at its end. made_with: versions, device, precision and git commit.
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

    def network(self) -> nn.Module:
        """The scored network on the CPU, in evaluation mode."""
        network = build(self.hyperparameters)
        network.load_state_dict(self.weights)
        return network.eval()


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
    content = BytesIO()
    torch.save(payload, content)
    return content.getvalue()


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint with its tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read or was not written by `save`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; name a checkpoint that fmnist-search wrote"
        ) from error
    return parse(content, str(path))


def parse(content: bytes, name: str) -> Checkpoint:
    """Read the content of a checkpoint file; `name` is what an error calls it.

    Raises:
        CheckpointError: it was not written by `save`, or is damaged.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch muses on how other files were pickled
            payload = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch fails in a dozen ways on what is not its own
        raise CheckpointError(f"{name}: damaged, or not a checkpoint of fmnist-search") from error
    if not isinstance(payload, dict) or payload.pop("format", None) != FORMAT:
        raise CheckpointError(f"{name}: not a checkpoint of fmnist-search ('{FORMAT}' is not in it)")
    try:
        checkpoint = Checkpoint(
            **{
                **payload,
                "hyperparameters": Hyperparameters(**payload["hyperparameters"]),
                "history": [EpochMetrics(**metrics) for metrics in payload["history"]],
            }
        )
        checkpoint.network()
    except (TypeError, KeyError, RuntimeError, ValidationError) as error:
        raise CheckpointError(f"{name}: its content does not fit this version of fmnist-search") from error
    return checkpoint


def resume(checkpoint: Checkpoint, device: torch.device) -> Training:
    """The training that the checkpoint interrupted, ready to go on.

    Raises:
        CheckpointError: the training was at its end.
    """
    if checkpoint.resume is None:
        raise CheckpointError(f"the training is at its end, epoch {checkpoint.hyperparameters.epochs}")
    training = Training(checkpoint.hyperparameters, checkpoint.seed, device, checkpoint.made_with["precision"])
    training.load_state_dict({"averaged": checkpoint.weights, **checkpoint.resume}, checkpoint.history)
    return training


def made_with(training: Training) -> dict[str, Any]:
    """Versions, machine and git commit, for whoever wants the same result again."""
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
