"""One trial: suggest, train epoch by epoch, save, report, prune."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna.trial import Trial, TrialState

from fmnist import checkpoint
from fmnist.data import DataSet, Splits
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Diverged, EpochMetrics, Training
from search import space
from search.definition import StudyDefinition
from search.study import STEPS_PER_EPOCH, seed_of


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
    seed = seed_of(definition, trial.number, "training")
    training, history = _start(hyperparameters, seed, device, path)
    if history and (outcome := _report(trial, hyperparameters, history[-1])):
        return outcome
    try:
        for metrics in training.epochs(splits, early=True):
            checkpoint.save(path, training, splits.score_on, data)
            trial.set_user_attr("seconds", sum(epoch.seconds for epoch in training.history))
            if outcome := _report(trial, hyperparameters, metrics):
                return outcome
            if stopping():
                return Outcome(TrialState.WAITING)
    except Diverged as error:
        return Outcome(TrialState.PRUNED, reason=f"diverged: {error}")
    raise AssertionError("a training ends with its last epoch")


def _start(
    hyperparameters: Hyperparameters, seed: int, device: torch.device, path: Path
) -> tuple[Training, list[EpochMetrics]]:
    """The training of an earlier attempt with what it has reported, or a new one.

    A checkpoint that is damaged, or of an earlier study of this name, is of no use: a new
    training comes to the same weights.
    """
    fresh = Training(hyperparameters, seed, device)
    try:
        saved = checkpoint.load(path)
    except checkpoint.CheckpointError:
        return fresh, []
    if (saved.hyperparameters, saved.seed) != (hyperparameters, seed):
        return fresh, []
    if saved.resume is None:
        return fresh, saved.history
    return checkpoint.resume(saved, device), saved.history


def _report(trial: Trial, hyperparameters: Hyperparameters, metrics: EpochMetrics) -> Outcome | None:
    """Report an epoch's accuracy and ask the pruner; None if the trial is to go on.

    The pruner is asked after the last epoch too: its rungs are what later trials are
    compared with. A trial at its end is complete whatever the answer.
    """
    step = round(metrics.epoch * STEPS_PER_EPOCH)
    if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(metrics.accuracy, step)
    prune = trial.should_prune()
    if metrics.epoch == hyperparameters.epochs:
        return Outcome(TrialState.COMPLETE, value=metrics.accuracy)
    if prune:
        return Outcome(TrialState.PRUNED, reason=f"pruned after epoch {metrics.epoch:g} of {hyperparameters.epochs}")
    return None
