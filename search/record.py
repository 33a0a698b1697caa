"""What a trial's user attributes say of its training."""

from typing import NamedTuple

from optuna.trial import FrozenTrial, TrialState

# The `name` of its newest checkpoint, SHA-256 of its `weights`, `device`, `threads` and `precision`,
# `seconds` of training, the `confusion` of its predictions, and its `history` as rows of what `Epoch` has.
CHECKPOINT = "checkpoint"
DROPPED = '"name": null'  # in the attribute, as it is stored, of a trial whose checkpoint was removed
AUDIT = "audit"  # of one that goes on although it is pruned: the epoch `since`, and at its end the `accuracy`


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


def history_of(trial: FrozenTrial) -> list[Epoch]:
    """What a trial went through, also beyond where it was pruned if it was audited."""
    return [Epoch(*row) for row in trial.user_attrs.get(CHECKPOINT, {}).get("history", [])]
