"""One trial: suggest, train epoch by epoch, save, report, prune."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna.trial import Trial, TrialState

from fmnist import checkpoint
from fmnist.checkpoint import Checkpoint
from fmnist.data import DataSet, Splits
from fmnist.hyperparameters import Hyperparameters
from fmnist.seeds import derive
from fmnist.training import Diverged, EpochMetrics, Training
from search import space
from search.definition import StudyDefinition
from search.study import REASON, STEPS_PER_EPOCH


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. WAITING: it stopped between epochs and can go on later.

    value: accuracy after the last epoch, of a COMPLETE trial. reason: why it was PRUNED.
    """

    state: TrialState
    value: float | None = None
    reason: str | None = None


def run_trial(
    trial: Trial,
    definition: StudyDefinition,
    data: DataSet,
    splits: Splits,
    device: torch.device,
    path: Path,
    stopping: Callable[[], bool],
) -> Outcome:
    """Train a trial from where its checkpoint stands, or from the start.

    Args:
        path: its checkpoint file, written at each report, before it.
        stopping: asked after each report whether to stop here and go on later.

    Raises:
        OSError: the checkpoint could not be written.
    """
    hyperparameters = space.suggest(trial, definition)
    seed = derive(definition.seed, "training", trial.number)
    saved = _saved(path, hyperparameters, seed, splits.score_on, data.fingerprint)
    if saved:
        for metrics in saved.history:
            _report(trial, metrics)
        if outcome := _verdict(trial, hyperparameters, saved.history[-1]):
            return outcome
    training = checkpoint.resume(saved, device) if saved else Training(hyperparameters, seed, device)
    try:
        for metrics in training.epochs(splits, early=True):
            checkpoint.save(path, training, splits.score_on, data)
            trial.set_user_attr("seconds", sum(epoch.seconds for epoch in training.history))
            _report(trial, metrics)
            if outcome := _verdict(trial, hyperparameters, metrics):
                return outcome
            if stopping():
                return Outcome(TrialState.WAITING)
    except Diverged as error:
        return Outcome(TrialState.PRUNED, reason=f"diverged: {error}")
    raise AssertionError("a training ends with its last epoch")


def _saved(
    path: Path, hyperparameters: Hyperparameters, seed: int, score_on: str, data_fingerprint: str
) -> Checkpoint | None:
    """The checkpoint of an earlier attempt at this very training.

    One that is damaged or of another training, left by an earlier study of this name, is
    of no use: a new training comes to the same weights.
    """
    try:
        saved = checkpoint.load(path)
    except checkpoint.CheckpointError:
        return None
    found = (saved.hyperparameters, saved.seed, saved.score_on, saved.data_fingerprint)
    return saved if found == (hyperparameters, seed, score_on, data_fingerprint) else None


def _report(trial: Trial, metrics: EpochMetrics) -> None:
    """Report an accuracy, unless an earlier attempt has."""
    step = round(metrics.epoch * STEPS_PER_EPOCH)
    if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(metrics.accuracy, step)


def _verdict(trial: Trial, hyperparameters: Hyperparameters, metrics: EpochMetrics) -> Outcome | None:
    """Ask the pruner about the last report; None if the trial is to go on.

    The pruner is asked after the last epoch too: its rungs are what later trials are
    compared with. A trial at its end is complete whatever the answer. A verdict that an
    earlier attempt was given stands: halving would not give it twice.
    """
    reason = trial.user_attrs.get(REASON)
    if reason is None and trial.should_prune() and metrics.epoch < hyperparameters.epochs:
        reason = f"pruned after epoch {metrics.epoch:g} of {hyperparameters.epochs}"
        trial.set_user_attr(REASON, reason)
    if metrics.epoch == hyperparameters.epochs:
        return Outcome(TrialState.COMPLETE, value=metrics.accuracy)
    return Outcome(TrialState.PRUNED, reason=reason) if reason else None
