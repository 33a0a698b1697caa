"""Records of a trial's training in its user attributes, and the checkpoint that they name.

They are validated when read: anyone with write access to the database can change them, also in optuna-dashboard.
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

# User attributes of a trial.
ATTEMPTS = "attempts"  # a list of `Attempt`, the current one last
CHECKPOINT = "checkpoint"  # `Saved`, of the newest checkpoint
REASON = "reason"  # why the trial did not complete
DROPPED = "dropped"  # true if the checkpoint was deleted; up to 0.2.0 the record then merely had no `name`
AUDIT = "audit"  # `Audited`, of a trial that continues although the pruner would have stopped it
PAUSED = "paused"  # `Paused`, of a WAITING trial that may be continued

# The step of an intermediate value counts hundredths of an epoch, so that a rung inside an epoch is an integer.
STEPS_PER_EPOCH = 100

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # the states that count towards a study's number of trials


class Epoch(NamedTuple):
    """A trial's metrics after an epoch; see `fmnist.training.EpochMetrics`."""

    epoch: float
    train_loss: float
    train_accuracy: float
    loss: float
    accuracy: float
    seconds: float


class RecordError(ExpectedError):
    """A trial's user attribute is not in the format that fmnist-search writes."""


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Attempt(_Record):
    """An attempt at a trial. ended, outcome, step: set when it ends."""

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

    name: its file, None once that is deleted. digest: at the file's end; records of 0.2.0 have none.
    weights: SHA-256 of the weights. seconds: training time so far. confusion: confusion matrix of its predictions.
    history: rows with the fields of `Epoch`. complexity: parameters and multiply-adds of a user's own network, whose
    code may be missing where this is read.
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
    """An audited trial. since: the epoch after which it would have been pruned. accuracy: at its end."""

    since: float
    accuracy: float | None = None


class Paused(_Record):
    """A paused trial. step, accuracy: of its last intermediate value. end: the step after its last epoch."""

    step: int = Field(gt=0)
    accuracy: float = Field(ge=0, le=1)
    end: int

    @model_validator(mode="after")
    def _before_its_end(self) -> Self:
        if self.step >= self.end:
            raise ValueError("step is at or beyond end")
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
        RecordError: the record is invalid; the same holds for the functions below.
    """
    return _read(_ATTEMPTS, trial, ATTEMPTS) or []


def saved_of(trial: FrozenTrial) -> Saved | None:
    """The record of a trial's checkpoint; None before the first."""
    return _read(_SAVED, trial, CHECKPOINT)


def audit_of(trial: FrozenTrial | Trial) -> Audited | None:
    """The record of an audited trial; None of any other."""
    return _read(_AUDITED, trial, AUDIT)


def paused_of(trial: FrozenTrial) -> Paused | None:
    """The record of a paused trial; None of any other."""
    return _read(_PAUSED, trial, PAUSED)


def reason_of(trial: FrozenTrial | Trial) -> str | None:
    """Why a trial did not complete."""
    return _read(_TEXT, trial, REASON)


def parse_attempts(stored: str, number: int) -> list[dict[str, Any]]:
    """Attempts from stored JSON, as plain values; `number`: the trial's, for error messages."""
    found: list[dict[str, Any]] = _parse(_ATTEMPTS, stored, number, ATTEMPTS)
    if any(each.get("outcome") is None or each.get("step") is None for each in found[:-1]):
        raise _altered(number, ATTEMPTS)
    return found


def parse_paused(stored: str, number: int, reported: Container[int]) -> Paused:
    """The record of a paused trial from stored JSON; `reported`: steps of all intermediate values in the study."""
    paused = Paused(**_parse(_PAUSED, stored, number, PAUSED))
    if paused.step not in reported:
        raise _altered(number, PAUSED)
    return paused


def parse_saved(stored: str, number: int) -> dict[str, Any]:
    """The record of a checkpoint from stored JSON, as plain values."""
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
        f"trial {number}: another program changed its user attribute {key!r}; "
        "restore the database, or start a new study with --name"
    )


def checkpoint_of(trial: FrozenTrial) -> str | None:
    """The name of a trial's checkpoint in the artifact store; None if none is kept."""
    saved = saved_of(trial)
    return saved.name if saved else None


def read_checkpoint(trial: FrozenTrial, artifacts: Artifacts) -> "tuple[bytes, Checkpoint] | None":
    """A trial's checkpoint, as bytes and parsed; None if none is kept or the file is missing.

    Raises:
        CheckpointError: the file is damaged, or not the recorded one.
        ArtifactError, OSError: it cannot be read.
    """
    from fmnist import checkpoint  # torch takes seconds to import, and `status` does not need it

    name = checkpoint_of(trial)
    content = artifacts.read(name) if name else None
    if content is None:
        return None
    place = f"{artifacts.location}/{name}"
    read = checkpoint.parse(content, place)
    check_recorded(trial, read, place)
    return content, read


def check_recorded(trial: FrozenTrial, read: "Checkpoint", place: str) -> None:
    """Check that a checkpoint is the one in a trial's record.

    Raises:
        CheckpointError: it is not.
    """
    saved = saved_of(trial)
    if saved is None or not is_recorded(saved.digest, saved.weights, read):
        raise CheckpointError(
            f"{place}: not the checkpoint of trial {trial.number}: its digest differs from the recorded one"
        )


def is_recorded(digest: str | None, weights: str | None, read: "Checkpoint") -> bool:
    """Whether a checkpoint matches the recorded digest, or for records without one the digest of its weights."""
    from fmnist.checkpoint import weights_digest

    if digest is not None:
        return bool(read.digest == digest)
    return bool(weights_digest(read.weights) == weights)


def history_of(trial: FrozenTrial) -> list[Epoch]:
    """A trial's metrics by epoch; of an audited trial also those after the point of pruning."""
    saved = saved_of(trial)
    return [Epoch(*row) for row in saved.history] if saved else []
