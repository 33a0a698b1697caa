import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from search.definition import StudyDefinition
from search.sampling import HISTORY, TPE_BEST, pruner, sampler, telling


def definition(**changes: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {"defaults": {"epochs": 4}, "space": {"epochs": {"low": 2, "high": 9}}, **changes}
    )


def test_names_choose_samplers_and_pruners() -> None:
    samplers = {
        "tpe": TPESampler,
        "gp": GPSampler,
        "random": RandomSampler,
        "grid": RandomSampler,
        "qmc": RandomSampler,
    }
    for name, kind in samplers.items():
        assert type(sampler(definition(sampler=name), 3)) is kind
    pruners = {
        "halving": SuccessiveHalvingPruner,
        "hyperband": HyperbandPruner,
        "median": MedianPruner,
        "percentile": PercentilePruner,
        "none": NopPruner,
    }
    for name, made in pruners.items():
        assert type(pruner(definition(pruner=name))) is made


def test_no_two_trials_are_sampled_from_the_same_random_numbers() -> None:
    """Nor are those of a study with another seed, while one and the same trial is."""

    def first_draws(number: int, seed: int = 0) -> dict[str, object]:
        study = optuna.create_study(sampler=sampler(definition(seed=seed), number))
        trial = study.ask()
        return {name: trial.suggest_float(name, 0, 1) for name in "abc"}

    draws = [first_draws(number) for number in range(20)] + [first_draws(0, seed=1)]
    assert len({str(each) for each in draws}) == 21
    assert first_draws(7) == draws[7]


def test_samplers_look_at_the_best_the_newest_and_those_that_run() -> None:
    accuracies = np.random.default_rng(1).random(HISTORY + 500)
    trials = [
        optuna.trial.create_trial(value=accuracy, state=TrialState.PRUNED if number % 3 else TrialState.COMPLETE)
        for number, accuracy in enumerate(accuracies)
    ]
    trials += [optuna.trial.create_trial(state=state) for state in (TrialState.RUNNING, TrialState.WAITING)]
    for number, trial in enumerate(trials):
        trial.number = number
    kept = telling(trials)
    numbers = [trial.number for trial in kept]
    assert numbers == sorted(numbers)
    assert HISTORY - TPE_BEST < len(kept) <= HISTORY + 1
    assert set(range(525, HISTORY + 501)) <= set(numbers)  # the newest 975, and the one that runs
    complete = sorted((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: -trial.value)
    assert {trial.number for trial in complete[:TPE_BEST]} <= set(numbers)
    assert telling(trials[:HISTORY]) == trials[:HISTORY]
