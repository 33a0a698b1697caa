"""Schema of a checkpoint file, validated before any network is built from it."""

import hashlib
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fmnist.architectures import build
from fmnist.choices import AppliedTta, in_file, is_own
from fmnist.classes import CLASSES
from fmnist.device import Precision
from fmnist.errors import CheckpointError as CheckpointError  # re-exported for callers
from fmnist.hyperparameters import Hyperparameters, ScoreOn
from fmnist.optimizer import MOMENTS, vector_length
from fmnist.training import QUARTERS

MAX_THREADS = 1024  # torch aborts the process if it cannot start as many


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PerClass = Field(min_length=len(CLASSES), max_length=len(CLASSES))
State = dict[str, Tensor]


class _Scores(_Strict):
    """Fields of `EpochMetrics`."""

    epoch: float = Field(gt=0, multiple_of=1 / QUARTERS)
    train_loss: float
    train_accuracy: Share
    loss: float = Field(allow_inf_nan=True)  # averaged weights may overflow where trained ones do not
    correct: Count
    total: int = Field(gt=0)
    seconds: float = Field(ge=0)
    confusion: Annotated[list[Annotated[list[Count], PerClass]], PerClass]


class _MadeWith(_Strict):
    """Return value of `made_with`."""

    fmnist_search: str
    torch: str
    python: str
    machine: str
    device: str
    threads: int = Field(ge=1, le=MAX_THREADS)
    precision: Precision
    git_commit: str | None


class _Source(_Strict):
    """Fields of `Source`."""

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


class Content(_Strict):
    """Return value of `plain`."""

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
    tta: AppliedTta = "none"  # files older than test-time augmentation were scored without it

    def check(self, size: int) -> None:
        """Raise ValueError if parts contradict each other, or tensors need more than the file's `size` bytes."""
        epochs = [scores.epoch for scores in self.history]
        end = self.resume.quarters / QUARTERS if self.resume else self.hyperparameters.epochs
        if epochs != sorted(set(epochs)) or epochs[-1] != end or end > self.hyperparameters.epochs:
            raise ValueError("epochs are not consecutive")
        if any(
            sum(map(sum, scores.confusion)) != scores.total or scores.correct > scores.total for scores in self.history
        ):
            raise ValueError("scores do not add up")
        tensors = [*self.weights.values()]
        if self.resume:
            optimizer = self.resume.optimizer
            tensors += [*self.resume.network.values(), *optimizer.moments, optimizer.updates]
        architecture = self.hyperparameters.architecture
        if is_own(architecture):  # only its code knows its shapes, and reading a file must not run code
            if in_file(architecture) != (self.source is not None):
                raise ValueError("source text is missing, or given for an importable module")
            if self.source and hashlib.sha256(self.source.text.encode()).hexdigest() != self.source.sha256:
                raise ValueError("source text does not match its digest")
            tensors = distinct(tensors)
        if sum(tensor.nbytes for tensor in tensors) > size:
            raise ValueError("tensors are larger than the file")
        if is_own(architecture):
            return
        with torch.device("meta"):  # shapes without memory, however large
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
            raise ValueError("weights do not fit the hyperparameters")


def distinct(tensors: list[Tensor]) -> list[Tensor]:
    """Drop repeated references to a shared tensor. Tensors that overlap in any other way are kept."""
    return [*{(each.data_ptr(), each.shape, each.stride(), each.dtype): each for each in tensors}.values()]


def _shapes(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
