"""One trial: train epoch by epoch, save checkpoints, report intermediate values, prune."""

import logging
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from threading import Timer

import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from fmnist import archive, checkpoint
from fmnist.checkpoint import Checkpoint, CheckpointError, weights_digest
from fmnist.complexity import complexity
from fmnist.data import DataSet, Splits
from fmnist.device import default_precision
from fmnist.dry_run import dry_run
from fmnist.errors import NetworkError
from fmnist.hyperparameters import TRAINING, Hyperparameters
from fmnist.own_network import OwnNetwork
from fmnist.training import Diverged, EpochMetrics, Training
from fmnist.tta import applied
from search.artifacts import Artifacts, checkpoint_name
from search.database.optuna_schema import stored
from search.formatting import assignments, percent
from search.queue import freezing
from search.queue.scheduler import Progress
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import (
    AUDIT,
    CHECKPOINT,
    REASON,
    STEPS_PER_EPOCH,
    Epoch,
    Paused,
    audit_of,
    checkpoint_of,
    read_checkpoint,
    reason_of,
)

log = logging.getLogger(__package__)


@dataclass(frozen=True)
class Objective:
    """What all trials of a study share in one process. own: the user's own network."""

    definition: StudyDefinition
    data: DataSet
    splits: Splits
    device: torch.device
    artifacts: Artifacts
    own: OwnNetwork | None = None


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. state: WAITING if it stopped between epochs and can be resumed.

    value: accuracy after the last epoch of a COMPLETE trial. reason: why it was PRUNED. paused: its progress if it was
    paused because others are more promising.
    """

    state: TrialState
    value: float | None = None
    reason: str | None = None
    paused: Paused | None = None


PATIENCE = 10.0  # seconds of trying a network before a warning


def try_network(definition: StudyDefinition) -> None:
    """Try the user's own network before a search, with its defaults and at the ends of the search space.

    Raises:
        NetworkError: it cannot be trained.
    """
    own = definition.own
    if own is None:
        return
    slow = Timer(PATIENCE, log.warning, ("%s is still being tried on two images; Ctrl-C cancels", own.architecture))
    slow.daemon = True
    slow.start()
    try:
        precision = default_precision(torch.device("cpu"))
        dry_run(own, definition.defaults.network, precision)
        for changes in space.extremes(definition, without=TRAINING):
            try:
                dry_run(own, definition.defaults.network | changes, precision)
            except NetworkError as error:
                raise NetworkError(f"with {assignments(changes)}: {error}") from error
        complexity(definition.defaults, own)
    finally:
        slow.cancel()


def run_trial(
    trial: Trial,
    objective: Objective,
    stopping: Callable[[], bool] = lambda: False,
    watch: Callable[[Training], None] = lambda _: None,
) -> Outcome:
    """Train a trial from its newest checkpoint, or from the start.

    After each epoch, in this order: write the checkpoint, record it in the database, report the intermediate value,
    ask the pruner. A resumed trial first completes the steps that its last attempt missed.

    Args:
        stopping: called after each report; True stops the trial so that it can be resumed later.
        watch: called with the training run before it starts or resumes.

    Raises:
        OSError, ArtifactError: the checkpoint cannot be written.
    """
    hyperparameters = space.hyperparameters_of(objective.definition, trial.params)
    known = stored(trial)
    name, reported = checkpoint_of(known), set(known.intermediate_values)
    saved = _saved(known, objective, hyperparameters)
    if saved:
        log.info("resumed at epoch %g", saved.history[-1].epoch)
        for metrics in saved.history:
            _report(trial, metrics, reported)
        if outcome := _verdict(trial, objective.definition, hyperparameters, saved.history[-1]):
            return outcome
    training = _training(trial, objective, hyperparameters, saved)
    watch(training)
    try:
        for metrics in training.epochs(objective.splits, early=True):
            name = _save(trial, objective, training, name)
            _report(trial, metrics, reported)
            if outcome := _verdict(trial, objective.definition, hyperparameters, metrics):
                return outcome
            if stopping():
                return Outcome(TrialState.WAITING)
    except Diverged as error:
        return Outcome(TrialState.PRUNED, reason=f"diverged: {error}")
    raise AssertionError("a training run ends with its last epoch")


def _training(
    trial: Trial, objective: Objective, hyperparameters: Hyperparameters, saved: Checkpoint | None
) -> Training:
    if saved is None:
        seed = space.training_seed(objective.definition, trial.number)
        return Training(hyperparameters, seed, objective.device, own=objective.own, tta=objective.definition.tta)
    torch.set_num_threads(saved.made_with["threads"])  # the number of threads affects rounding
    return checkpoint.resume(saved, objective.device)


def _saved(trial: FrozenTrial, objective: Objective, hyperparameters: Hyperparameters) -> Checkpoint | None:
    # The newest checkpoint of an earlier attempt. One that is damaged, unrecorded or from another training run is
    # ignored: training from the start reaches the same weights.
    try:
        found = read_checkpoint(trial, objective.artifacts)
    except (CheckpointError, MemoryError) as error:  # MemoryError: the file was replaced by a huge one
        log.warning("restarting from epoch 0: %s", error or "the checkpoint does not fit into memory")
        return None
    if found is None:
        return None
    _, saved = found
    made_of = (saved.hyperparameters, saved.seed, saved.tta, saved.score_on, saved.data_fingerprint)
    seed = space.training_seed(objective.definition, trial.number)
    tta = applied(objective.definition.tta, hyperparameters)
    expected = (hyperparameters, seed, tta, objective.splits.score_on, objective.data.fingerprint)
    if made_of != expected:
        log.warning("restarting from epoch 0: the checkpoint is from another training run")
        return None
    return saved


def _save(trial: Trial, objective: Objective, training: Training, former: str | None) -> str:
    name = checkpoint_name(trial.number, training.history[-1].epoch)
    content = checkpoint.dump(training, objective.splits.score_on, objective.data)
    objective.artifacts.write(name, content)
    history = [[getattr(metrics, column) for column in Epoch._fields] for metrics in training.history]
    record = {
        "name": name,
        "digest": archive.digest_of(content),
        "weights": weights_digest(training.averaged.state_dict()),
        "device": str(objective.device),
        "threads": torch.get_num_threads(),
        "precision": training.precision,
        "seconds": sum(metrics.seconds for metrics in training.history),
        "confusion": training.history[-1].confusion,
        "history": history,
    }
    if objective.own and training.finished:
        record["complexity"] = list(astuple(complexity(training.hyperparameters, objective.own)))
    trial.set_user_attr(CHECKPOINT, record)
    if former and former != name:
        objective.artifacts.remove(former)
    return name


def _report(trial: Trial, metrics: EpochMetrics, reported: set[int]) -> None:
    # Skip what an earlier attempt reported, and what an audit trains beyond the point of pruning.
    step, audited = round(metrics.epoch * STEPS_PER_EPOCH), audit_of(trial)
    if step not in reported and metrics.epoch <= (audited.since if audited else math.inf):
        trial.report(metrics.accuracy, step)
        reported.add(step)
        log.info("reported %s at epoch %g", percent(metrics.accuracy), metrics.epoch)


def _verdict(
    trial: Trial, definition: StudyDefinition, hyperparameters: Hyperparameters, metrics: EpochMetrics
) -> Outcome | None:
    # None if the trial continues. The pruner is asked after the last epoch too, because it compares later trials with
    # the rungs that it records; a trial at its end is complete whatever the answer. The verdict of an earlier attempt
    # stands: halving would not repeat it.
    at_end = metrics.epoch == hyperparameters.epochs
    if audit_of(trial):
        return _end_of_audit(trial, hyperparameters, metrics) if at_end else None
    reason = reason_of(trial)
    if definition.pruner == "freeze" and not at_end:
        step, end = round(metrics.epoch * STEPS_PER_EPOCH), hyperparameters.epochs * STEPS_PER_EPOCH
        if freezing.is_chosen(trial.study, Progress(trial.number, step, metrics.accuracy, end)):
            return None
        return Outcome(TrialState.WAITING, paused=Paused(step=step, accuracy=metrics.accuracy, end=end))
    if reason is None and trial.should_prune() and not at_end:
        if freezing.is_audited(definition, trial.number):
            trial.set_user_attr(AUDIT, {"since": metrics.epoch})
            return None
        reason = _pruned(metrics.epoch, hyperparameters)
        trial.set_user_attr(REASON, reason)
    if at_end:
        return Outcome(TrialState.COMPLETE, value=metrics.accuracy)
    return Outcome(TrialState.PRUNED, reason=reason) if reason else None


def _end_of_audit(trial: Trial, hyperparameters: Hyperparameters, metrics: EpochMetrics) -> Outcome:
    # Sampler and pruner still see the trial as pruned at `since`.
    audited = audit_of(trial)
    assert audited  # as the caller has checked
    since = audited.since
    trial.set_user_attr(AUDIT, {"since": since, "accuracy": metrics.accuracy})
    return Outcome(TrialState.PRUNED, reason=f"{_pruned(since, hyperparameters)}; trained to the end for the audit")


def _pruned(epoch: float, hyperparameters: Hyperparameters) -> str:
    return f"pruned after epoch {epoch:g} of {hyperparameters.epochs}"
