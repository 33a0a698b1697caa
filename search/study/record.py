"""What a trial's user attributes say of its training, and the checkpoint that they name."""

from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from fmnist.errors import CheckpointError
from search.artifacts import Artifacts

if TYPE_CHECKING:
    from fmnist.checkpoint import Checkpoint

# The `name` of its newest checkpoint, the `digest` at that file's end, SHA-256 of its `weights`, `device`, `threads`
# and `precision`, `seconds` of training, the `confusion` of its predictions, and its `history` as rows of what
# `Epoch` has. Records of 0.2.0 and before have no `digest`.
CHECKPOINT = "checkpoint"

DROPPED = "dropped"  # true for a trial whose checkpoint was removed; records of 0.2.0 and before have only no `name`

AUDIT = "audit"  # of one that goes on although it is pruned: the epoch `since`, and at its end the `accuracy`

# The step of a report counts hundredths of an epoch, so that a rung inside an epoch is a whole number.
STEPS_PER_EPOCH = 100

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # what a budget counts


class Epoch(NamedTuple):
    """A trial's scores after an epoch, as `fmnist.training.EpochMetrics` explains them."""

    epoch: float
    train_loss: float
    train_accuracy: float
    loss: float
    accuracy: float
    seconds: float


def checkpoint_of(trial: FrozenTrial) -> str | None:
    """The name of a trial's checkpoint among the artifacts; None if none is kept."""
    name: str | None = trial.user_attrs.get(CHECKPOINT, {}).get("name")
    return name


def read_checkpoint(trial: FrozenTrial, artifacts: Artifacts) -> "tuple[bytes, Checkpoint] | None":
    """A trial's checkpoint, as a file's content and as what is in it; None if none is kept or the file is gone.

    Raises:
        CheckpointError: the file is damaged, or another than the one on record.
        ArtifactError, OSError: it cannot be read.
    """
    from fmnist import checkpoint  # torch takes seconds to import, and `status` does without it

    name = checkpoint_of(trial)
    content = artifacts.read(name) if name else None
    if content is None:
        return None
    place = f"{artifacts.location}/{name}"
    read = checkpoint.parse(content, place)
    check_recorded(trial, read, place)
    return content, read


def check_recorded(trial: FrozenTrial, read: "Checkpoint", place: str) -> None:
    """See whether a checkpoint is the one on a trial's record.

    Raises:
        CheckpointError: it is another.
    """
    if not is_recorded(trial.user_attrs[CHECKPOINT], read):
        raise CheckpointError(f"{place}: not what trial {trial.number} wrote, as its digest is not the one on record")


def is_recorded(record: dict[str, Any], read: "Checkpoint") -> bool:
    """Whether a checkpoint is the one on a record."""
    from fmnist.checkpoint import weights_digest

    if "digest" in record:
        return bool(read.digest == record["digest"])
    return bool(weights_digest(read.weights) == record.get("weights"))


def history_of(trial: FrozenTrial) -> list[Epoch]:
    """What a trial went through, also beyond where it was pruned if it was audited."""
    return [Epoch(*row) for row in trial.user_attrs.get(CHECKPOINT, {}).get("history", [])]
