"""Several trained networks in one file, used as one network that averages their probabilities.

The file is an archive like a checkpoint, with the same checks: weights only, a digest of all bytes, and no tensor
larger than the file. `load` reads either.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fmnist import archive, checkpoint
from fmnist.checkpoint import Checkpoint, CheckpointError
from fmnist.choices import is_own
from fmnist.hyperparameters import ScoreOn
from fmnist.tta import log_mean_softmax

FORMAT = "fmnist-search ensemble 1"
MAX_MEMBERS = 64  # whose plain values fit into archive.LARGEST_PICKLE


@dataclass(frozen=True)
class Ensemble:
    """Content of an ensemble file.

    members: checkpoints of finished training runs, each with its last scores only. trials: their trial numbers.
    digest: SHA-256 of all preceding bytes.
    """

    members: list[Checkpoint]
    trials: list[int]
    digest: str

    @property
    def architecture(self) -> str:
        """That of the first member that is the user's own network, or else of the first member."""
        architectures = [member.architecture for member in self.members]
        return next(filter(is_own, architectures), architectures[0])

    @property
    def score_on(self) -> ScoreOn:
        return self.members[0].score_on

    @property
    def data_set(self) -> str:
        return self.members[0].data_set

    @property
    def data_fingerprint(self) -> str:
        return self.members[0].data_fingerprint

    def network(self) -> nn.Module:
        """The members as one network on the CPU, in evaluation mode; it outputs their log mean probabilities.

        Raises:
            NetworkError: the code of the user's own network is missing, or differs from the recorded one.
            CheckpointError: the weights do not fit their network.
        """
        return MeanOfNetworks([member.network() for member in self.members]).eval()


class MeanOfNetworks(nn.Module):
    """Average the probabilities of networks, each with its own test-time augmentation."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) float32 to (N, 10) float32."""
        # A copy for each, because a user's own network may change its input in place.
        return log_mean_softmax([network(images.clone()) for network in self.networks])


def dump(members: list[Checkpoint], trials: list[int]) -> bytes:
    """The content of an ensemble file, from at most MAX_MEMBERS finished training runs on one data set."""
    # Shared source text is stored once, and full histories of many members would exceed archive.LARGEST_PICKLE.
    parts = [checkpoint.plain(replace(each, history=each.history[-1:], source=None)) for each in members]
    source = next((each.source for each in members if each.source), None)
    payload = {"format": FORMAT, "trials": trials, "members": parts}
    return archive.write(payload | ({"source": asdict(source)} if source else {}))


def load(path: Path | str) -> Checkpoint | Ensemble:
    """Read a checkpoint or an ensemble, tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or is neither.
    """
    return parse(checkpoint.read(path), str(path))


def parse(content: bytes, name: str) -> Checkpoint | Ensemble:
    """Read the content of a checkpoint or an ensemble file; `name` identifies it in errors.

    Raises:
        CheckpointError: the content is neither, or is damaged.
    """
    payload = checkpoint.unpack(content, name)
    if payload["format"] != FORMAT:
        return checkpoint.of_archive(payload, content, name)
    digest = archive.digest_of(content)
    if digest is None:
        raise CheckpointError(f"{name}: damaged, or not an fmnist-search ensemble; use another copy")
    try:
        stored = _Content.model_validate(payload)
        return Ensemble(_members(stored, len(content)), stored.trials, digest)
    except (ValueError, RecursionError) as error:  # pydantic's error is a ValueError
        raise CheckpointError(
            f"{name}: content not valid in this version of fmnist-search; use the one that wrote it"
        ) from error


Number = Annotated[int, Field(ge=0)]


class _Content(BaseModel):
    """Payload that `dump` writes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: str
    trials: list[Number]
    members: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MEMBERS)
    source: dict[str, Any] | None = None


def _members(stored: _Content, size: int) -> list[Checkpoint]:
    members = []
    for values in stored.members:
        own = {"source": stored.source} if stored.source else {}
        members.append(checkpoint.checked(values | own, size, None))
        size -= checkpoint.size_of(members[-1])  # bytes left for the other members
    if len({(each.data_fingerprint, each.score_on) for each in members}) > 1:
        raise ValueError("members were scored on different images")
    if len(set(stored.trials)) != len(members):
        raise ValueError("trials do not match the members")
    if any(each.resume for each in members):
        raise ValueError("a training run is unfinished")
    return members
