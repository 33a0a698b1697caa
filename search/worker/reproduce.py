"""Trains a recorded trial again from its seed and compares it with the record bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass

import optuna
import torch
from optuna.trial import FrozenTrial

from fmnist.checkpoint import weights_digest
from fmnist.data import DataSet, split
from fmnist.errors import UsageError
from fmnist.training import Training
from search.study import space
from search.study.record import FINISHED, STEPS_PER_EPOCH, history_of, saved_of
from search.study.store import DATA, definition_of, own_network_of


class NotReproducible(UsageError):
    """The trial cannot be reproduced on this machine; the message says why."""


@dataclass(frozen=True)
class Compared:
    """The recorded and the reproduced accuracy after an epoch."""

    epoch: float
    recorded: float
    found: float


@dataclass(frozen=True)
class Reproduction:
    """Whether metrics and weights are bit-identical to the recorded ones."""

    same_metrics: bool
    same_weights: bool


def recorded_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """The finished trial with this number.

    Raises:
        NotReproducible: there is no such trial, or it has no recorded epoch.
    """
    trials = study.get_trials(deepcopy=False)
    if number >= len(trials):
        raise NotReproducible(f"study {study.study_name!r} has no trial {number}; its last is {len(trials) - 1}")
    trial = trials[number]
    if trial.state not in FINISHED:
        raise NotReproducible(f"trial {number} is {trial.state.name}; choose one that is COMPLETE or PRUNED")
    if not history_of(trial):
        raise NotReproducible(f"trial {number} has no finished epoch to reproduce; choose another")
    return trial


def reproduce(study: optuna.Study, number: int, data: DataSet, on_epoch: Callable[[Compared], None]) -> Reproduction:
    """Train a trial again for its recorded epochs, with its seed, device, precision and number of threads.

    Raises:
        NotReproducible: there is no such record, the data set differs, or this machine lacks the device.
        NetworkError: the user's own network is missing, or differs from the recorded one.
    """
    trial, definition = recorded_trial(study, number), definition_of(study)
    if study.user_attrs[DATA]["fingerprint"] != data.fingerprint:
        raise NotReproducible(
            f"trial {number} was trained on {study.user_attrs[DATA]['name']}, but {data.name} in {data.folder} has "
            "other checksums; name the study's data with --data-dir"
        )
    saved = saved_of(trial)
    assert saved  # as it has a history
    recorded = {
        epoch.epoch: trial.intermediate_values.get(round(epoch.epoch * STEPS_PER_EPOCH), epoch.accuracy)
        for epoch in history_of(trial)  # of an audited trial it continues after the last intermediate value
    }
    device = torch.device(saved.device or "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NotReproducible(f"trial {number} was trained on {device}, which this machine lacks; use one that has it")
    torch.set_num_threads(saved.threads or 1)
    hyperparameters, own = space.hyperparameters_of(definition, trial.params), own_network_of(study)
    seed = space.training_seed(definition, number)
    training = Training(hyperparameters, seed, device, saved.precision, own, definition.tta)
    same = True
    for metrics in training.epochs(split(data, definition.score_on), early=True):
        on_epoch(Compared(metrics.epoch, recorded[metrics.epoch], metrics.accuracy))
        same &= recorded[metrics.epoch] == metrics.accuracy
        if metrics.epoch == max(recorded):
            break
    weights = weights_digest(training.averaged.state_dict())
    return Reproduction(same, weights == saved.weights)
