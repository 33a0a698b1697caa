import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from search.study.definition import StudyDefinition
from search.worker.sampling import HISTORY, TPE_BEST, SlackPruner, pruner, sampler, telling


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
        "slack": SlackPruner,
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


def prunes(accuracies: dict[int, float], *others: dict[int, float]) -> bool:
    """Whether a slack of a tenth at step 100 ends a trial that reported these accuracies, beside others that run."""
    study = optuna.create_study(direction="maximize", pruner=SlackPruner(0.1, unit=100))
    trials = [study.ask() for _ in range(len(others) + 1)]
    for trial, reports in zip(trials, (*others, accuracies), strict=True):
        for step, accuracy in reports.items():
            trial.report(accuracy, step)
    return trials[-1].should_prune()


def test_slack_ends_a_trial_whose_error_is_too_far_above_the_least_at_its_step() -> None:
    assert not prunes({100: 0.8})
    assert not prunes({}, {100: 0.9})
    assert not prunes({100: 0.891}, {100: 0.9}, {100: 0.7})
    assert prunes({100: 0.889}, {100: 0.9}, {100: 0.7})
    assert not prunes({100: 0.5}, {200: 0.9})
    assert prunes({100: 0.95, 200: 0.88}, {100: 0.8, 200: 0.9})


def test_slack_shrinks_with_the_fourth_root_of_the_step() -> None:
    assert not prunes({1600: 0.8951}, {1600: 0.9})
    assert prunes({1600: 0.8949}, {1600: 0.9})
