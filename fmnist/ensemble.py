"""Several trained networks in one file, used as one: the mean of their probabilities.

The file is an archive as a checkpoint is one, with the same checks: weights only, a digest of all its bytes, and no
tensor that is larger than the file. `load` reads either.
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
MOST_MEMBERS = 64  # whose plain values fit into the bound of an archive's


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble's file holds.

    members: checkpoints of finished trainings, each with its last scores only. trials: their numbers in their study.
    digest: SHA-256 of the file up to it.
    """

    members: list[Checkpoint]
    trials: list[int]
    digest: str

    @property
    def architecture(self) -> str:
        """The members' own network of the user's, or else the first member's."""
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
        """All networks as one on the CPU, in evaluation mode: its output is the logarithm of their mean probabilities.

        Raises:
            NetworkError: one is the user's own, and its code is not here, or not what is on record.
            CheckpointError: the weights are not those of that network.
        """
        return MeanOfNetworks([member.network() for member in self.members]).eval()


class MeanOfNetworks(nn.Module):
    """Networks whose probabilities are averaged, each after its own test-time augmentation."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 1, 28, 28) float32; (N, 10) float32."""
        # a copy for each: a user's own network may change its input in place
        return log_mean_softmax([network(images.clone()) for network in self.networks])


def dump(members: list[Checkpoint], trials: list[int]) -> bytes:
    """Finished trainings of one data set, MOST_MEMBERS at the most, as the content of an ensemble's file."""
    # The text of a user's network is the same in all, and a history takes more room than is left for many.
    parts = [checkpoint.plain(replace(each, history=each.history[-1:], source=None)) for each in members]
    source = next((each.source for each in members if each.source), None)
    payload = {"format": FORMAT, "trials": trials, "members": parts}
    return archive.write(payload | ({"source": asdict(source)} if source else {}))


def load(path: Path | str) -> Checkpoint | Ensemble:
    """Read a checkpoint or an ensemble with its tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or is neither.
    """
    return parse(checkpoint.read(path), str(path))


def parse(content: bytes, name: str) -> Checkpoint | Ensemble:
    """Read the content of a checkpoint's or an ensemble's file; `name` is what an error calls it.

    Raises:
        CheckpointError: it is neither, or is damaged.
    """
    payload = checkpoint.unpack(content, name)
    if payload["format"] != FORMAT:
        return checkpoint.of_archive(payload, content, name)
    digest = archive.digest_of(content)
    if digest is None:
        raise CheckpointError(f"{name}: damaged, or not an ensemble of fmnist-search")
    try:
        stored = _Content.model_validate(payload)
        return Ensemble(_members(stored, len(content)), stored.trials, digest)
    except (ValueError, RecursionError) as error:  # pydantic's error is a ValueError
        raise CheckpointError(f"{name}: its content does not fit this version of fmnist-search") from error


Number = Annotated[int, Field(ge=0)]


class _Content(BaseModel):
    """What `dump` puts into a file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: str
    trials: list[Number]
    members: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_MEMBERS)
    source: dict[str, Any] | None = None


def _members(stored: _Content, size: int) -> list[Checkpoint]:
    """Raise ValueError unless each of them is a checkpoint, and all of them fit into the file and each other."""
    members = []
    for values in stored.members:
        own = {"source": stored.source} if stored.source else {}
        members.append(checkpoint.checked(values | own, size, None))
        size -= checkpoint.size_of(members[-1])  # of what the others may take
    if len({(each.data_fingerprint, each.score_on) for each in members}) > 1:
        raise ValueError("its members are of different images")
    if len(set(stored.trials)) != len(members):
        raise ValueError("its trials are not those of its members")
    if any(each.resume for each in members):
        raise ValueError("a training is not at its end")
    return members
