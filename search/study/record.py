"""What a trial's user attributes say of its training, and the checkpoint that they name.

Anybody who may write to the database can change them, in optuna-dashboard too: what is read is checked first.
"""

import json
from collections.abc import Container
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeVar

from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fmnist.errors import CheckpointError, ExpectedError
from search.artifacts import Artifacts

if TYPE_CHECKING:
    from fmnist.checkpoint import Checkpoint

ATTEMPTS = "attempts"  # each attempt at the trial, the present one last, as `Attempt` has it
CHECKPOINT = "checkpoint"  # its newest checkpoint, as `Saved` has it
REASON = "reason"  # why it did not complete

DROPPED = "dropped"  # true for a trial whose checkpoint was removed; records of 0.2.0 and before have only no `name`

AUDIT = "audit"  # of one that goes on although it is pruned, as `Audited` has it

PAUSED = "paused"  # of a WAITING trial that may be continued, as `Paused` has it

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


class RecordError(ExpectedError):
    """A trial's user attribute does not have the format that fmnist-search writes."""


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Attempt(_Record):
    """An attempt at a trial, from its claim; the second half is set when it ends."""

    token: str | None = None
    machine: str
    host: str
    pid: int = Field(gt=0, lt=2**31)
    device: str
    threads: int
    grace: float
    started: AwareDatetime = Field(strict=False)  # text in the database
    ended: AwareDatetime | None = Field(None, strict=False)
    outcome: str | None = None
    step: int | None = None


class Saved(_Record):
    """The record of a checkpoint.

    name: of its file, None once that was removed. digest: at the file's end; records of 0.2.0 have none.
    weights: their SHA-256. confusion: of its predictions. history: rows of what `Epoch` has.
    complexity: parameters and multiply-adds of a user's own network, whose code is not there where this is read.
    """

    name: str | None = None
    digest: str | None = None
    weights: str | None = None
    device: str | None = None
    threads: int | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    seconds: float = 0.0
    confusion: list[list[int]] = []
    history: list[Annotated[list[float], Field(min_length=6, max_length=6)]] = []
    complexity: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None


class Audited(_Record):
    """since: the epoch after which the trial would have been pruned. accuracy: at its end."""

    since: float
    accuracy: float | None = None


class Paused(_Record):
    """How far a paused trial has come: step and accuracy of its last report, and the step after its last epoch."""

    step: int = Field(gt=0)
    accuracy: float = Field(ge=0, le=1)
    end: int

    @model_validator(mode="after")
    def _before_its_end(self) -> Self:
        if self.step >= self.end:
            raise ValueError("it is at its end")
        return self


_ATTEMPTS: TypeAdapter[list[Attempt]] = TypeAdapter(Annotated[list[Attempt], Field(min_length=1)])
_SAVED = TypeAdapter(Saved)
_AUDITED = TypeAdapter(Audited)
_PAUSED = TypeAdapter(Paused)
_TEXT = TypeAdapter(str)

T = TypeVar("T")


def attempts_of(trial: FrozenTrial) -> list[Attempt]:
    """The attempts at a trial.

    Raises:
        RecordError: that is not on record as it should be; likewise of the other functions here.
    """
    return _read(_ATTEMPTS, trial, ATTEMPTS) or []


def saved_of(trial: FrozenTrial) -> Saved | None:
    """The record of a trial's checkpoint; None before the first, and of what never had one."""
    return _read(_SAVED, trial, CHECKPOINT)


def audit_of(trial: FrozenTrial | Trial) -> Audited | None:
    """What is on record of a trial that goes on although it is pruned."""
    return _read(_AUDITED, trial, AUDIT)


def paused_of(trial: FrozenTrial) -> Paused | None:
    """How far a paused trial has come; None of any other."""
    return _read(_PAUSED, trial, PAUSED)


def reason_of(trial: FrozenTrial | Trial) -> str | None:
    """Why a trial did not complete."""
    return _read(_TEXT, trial, REASON)


def parse_attempts(stored: str, number: int) -> list[dict[str, Any]]:
    """The attempts at the trial of that number from the JSON that is stored, to be written again: as plain values."""
    found: list[dict[str, Any]] = _parse(_ATTEMPTS, stored, number, ATTEMPTS)
    if any(each.get("outcome") is None or each.get("step") is None for each in found[:-1]):
        raise _altered(number, ATTEMPTS)
    return found


def parse_paused(stored: str, number: int, reported: Container[int]) -> Paused:
    """The record of a paused trial, likewise; `reported`: steps that trials have reported, its own among them."""
    paused = Paused(**_parse(_PAUSED, stored, number, PAUSED))
    if paused.step not in reported:
        raise _altered(number, PAUSED)
    return paused


def parse_saved(stored: str, number: int) -> dict[str, Any]:
    """The record of a checkpoint, likewise."""
    found: dict[str, Any] = _parse(_SAVED, stored, number, CHECKPOINT)
    return {"name": None} | found


def _read(kind: TypeAdapter[T], trial: FrozenTrial | Trial, key: str) -> T | None:
    value = trial.user_attrs.get(key)
    try:
        return None if value is None else kind.validate_python(value)
    except ValidationError as error:
        raise _altered(trial.number, key) from error


def _parse(kind: TypeAdapter[Any], stored: str, number: int, key: str) -> Any:
    try:
        value = json.loads(stored)
        kind.validate_python(value)
    except ValueError as error:  # a ValidationError is one
        raise _altered(number, key) from error
    return value


def _altered(number: int, key: str) -> RecordError:
    return RecordError(
        f"trial {number}: its user attribute {key!r} was changed by something other than fmnist-search; "
        "restore the database, or start a new study with --name"
    )


def checkpoint_of(trial: FrozenTrial) -> str | None:
    """The name of a trial's checkpoint among the artifacts; None if none is kept."""
    saved = saved_of(trial)
    return saved.name if saved else None


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
    saved = saved_of(trial)
    if saved is None or not is_recorded(saved.digest, saved.weights, read):
        raise CheckpointError(f"{place}: not what trial {trial.number} wrote, as its digest is not the one on record")


def is_recorded(digest: str | None, weights: str | None, read: "Checkpoint") -> bool:
    """Whether a checkpoint is the one on record."""
    from fmnist.checkpoint import weights_digest

    if digest is not None:
        return bool(read.digest == digest)
    return bool(weights_digest(read.weights) == weights)


def history_of(trial: FrozenTrial) -> list[Epoch]:
    """What a trial went through, also beyond where it was pruned if it was audited."""
    saved = saved_of(trial)
    return [Epoch(*row) for row in saved.history] if saved else []
