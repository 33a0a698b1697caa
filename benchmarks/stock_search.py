"""The search that Optuna's own examples teach: TPE, MedianPruner and threads, with the loop of benchmarks/stock.py."""

import time
from pathlib import Path

import optuna
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from benchmarks import stock
from benchmarks.outcome import Ended, Searched, value_of
from fmnist.data import Splits
from search.database.connection import open_storage
from search.database.url import sqlite_url
from search.run.local import cores
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import FINISHED

AT = "at"  # a user attribute of trials: as in Ended


def stock_search(definition: StudyDefinition, splits: Splits, trials: int, file: Path, console: Console) -> Searched:
    """Search a definition's space, with the default configuration first.

    The study is in a database, `file`, so that an interrupted search can resume. Trials that were running start over.
    """
    torch.set_num_threads(1)
    storage = open_storage(sqlite_url(file), "create")  # or both threads may take the default's trial
    study = optuna.create_study(storage=storage, study_name="stock", direction="maximize", load_if_exists=True)
    ended = ended_trials(study)
    study.sampler = optuna.samplers.TPESampler(seed=len(ended))  # 0 again would be the first trials again
    study.pruner = optuna.pruners.MedianPruner()
    begin_with_default(study, space.default_point(definition))
    began = time.perf_counter() - max((trial.at for trial in ended), default=0.0)

    def objective(trial: Trial) -> float:
        accuracy = 0.0
        hyperparameters = space.hyperparameters_of(definition, suggested(trial, definition))
        for epoch, accuracy in enumerate(stock.epochs(hyperparameters, splits, trial.number), 1):
            trial.report(accuracy, epoch)
            trial.set_user_attr(AT, time.perf_counter() - began)
            if epoch < hyperparameters.epochs and trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    def said(study: optuna.Study, _: FrozenTrial) -> None:
        console.print(f"stock: {len(ended_trials(study))} of {trials} trials, {time.perf_counter() - began:.0f} s")

    study.optimize(objective, n_trials=trials - len(ended), n_jobs=cores(), callbacks=[said])
    return Searched("stock", time.perf_counter() - began, ended_trials(study), study.best_params)


def suggested(trial: Trial, definition: StudyDefinition) -> space.Point:
    """The searched values that the study's sampler chooses."""
    chosen: space.Point = {}
    for name, allowed in space.distributions(definition).items():
        if isinstance(allowed, CategoricalDistribution):
            chosen[name] = trial.suggest_categorical(name, allowed.choices)
        elif isinstance(allowed, IntDistribution):
            chosen[name] = trial.suggest_int(name, allowed.low, allowed.high, step=allowed.step, log=allowed.log)
        elif isinstance(allowed, FloatDistribution):
            chosen[name] = trial.suggest_float(name, allowed.low, allowed.high, step=allowed.step, log=allowed.log)
    return chosen


def begin_with_default(study: optuna.Study, default: space.Point) -> None:
    """Have the default configuration as a trial that is finished or next; what ran before is given up."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    there = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.WAITING))
    if not any(trial.system_attrs.get("fixed_params") == default for trial in there):
        study.enqueue_trial(default)


def ended_trials(study: optuna.Study) -> list[Ended]:
    """By the time of their end."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    ended = [
        Ended(trial.user_attrs[AT], len(trial.intermediate_values), value_of(trial), trial.params) for trial in trials
    ]
    return sorted(ended, key=lambda trial: trial.at)
