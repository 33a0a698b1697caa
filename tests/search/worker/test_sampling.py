import copy
import math

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.study import space
from search.study.definition import StudyDefinition
from search.study.parameters import applying, is_complete
from search.worker.sampling import HISTORY, TPE_BEST, SlackPruner, limit_history, propose, pruner, sampler


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


def test_trials_are_sampled_from_independent_random_numbers() -> None:
    """Another seed changes them too; the same trial always gets the same numbers."""

    def first_draws(number: int, seed: int = 0) -> dict[str, object]:
        study = optuna.create_study(sampler=sampler(definition(seed=seed), number))
        trial = study.ask()
        return {name: trial.suggest_float(name, 0, 1) for name in "abc"}

    draws = [first_draws(number) for number in range(20)] + [first_draws(0, seed=1)]
    assert len({str(each) for each in draws}) == 21
    assert first_draws(7) == draws[7]


def test_samplers_see_the_best_the_newest_and_the_running_trials() -> None:
    accuracies = np.random.default_rng(1).random(HISTORY + 500)
    trials = [
        optuna.trial.create_trial(value=accuracy, state=TrialState.PRUNED if number % 3 else TrialState.COMPLETE)
        for number, accuracy in enumerate(accuracies)
    ]
    trials += [optuna.trial.create_trial(state=state) for state in (TrialState.RUNNING, TrialState.WAITING)]
    for number, trial in enumerate(trials):
        trial.number = number
    kept = limit_history(trials)
    numbers = [trial.number for trial in kept]
    assert numbers == sorted(numbers)
    assert HISTORY - TPE_BEST < len(kept) <= HISTORY + 1
    assert set(range(525, HISTORY + 501)) <= set(numbers)  # the newest 975, and the one that runs
    complete = sorted((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: -trial.value)
    assert {trial.number for trial in complete[:TPE_BEST]} <= set(numbers)
    assert limit_history(trials[:HISTORY]) == trials[:HISTORY]


WIDE = definition(
    space={"epochs": {"low": 2, "high": 9}, "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}, seed=3
)


def history(number: int, best: float = 0.001) -> list[FrozenTrial]:
    """Finished trials whose accuracy falls with the distance of their learning rate from the best one."""
    ranges, trials = space.distributions(WIDE), []
    for place in range(number):
        point = space.random_point(WIDE.space, 5, place, {})
        value = 1 - abs(math.log10(point["learning_rate"] / best)) / 4
        trials.append(create_trial(value=value, params=point, distributions=ranges))
        trials[-1].number = place
    return trials


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_a_proposal_depends_only_on_the_trials_the_number_and_the_seed(kind: str) -> None:
    chosen = WIDE.model_copy(update={"sampler": kind})
    trials = history(30)
    first = propose(chosen, trials, 30, {})
    assert first == propose(chosen, [*trials, waiting(31)], 30, {})
    assert first != propose(chosen, trials, 31, {})
    assert first != propose(chosen, history(30, best=0.05), 30, {})
    assert first.keys() == WIDE.space.keys()


def waiting(number: int) -> FrozenTrial:
    trial = create_trial(state=TrialState.WAITING)
    trial.number = number
    return trial


def test_a_trial_outside_the_ranges_is_ignored() -> None:
    trials = history(30)
    outside = copy.copy(trials[7])
    outside.number, outside.params = 30, outside.params | {"learning_rate": 5.0}
    assert propose(WIDE, [*trials, outside], 31, {}) == propose(WIDE, trials, 31, {})


def test_a_proposal_is_near_what_was_good() -> None:
    proposals = [propose(WIDE, history(200), number, {})["learning_rate"] for number in range(200, 220)]
    assert sum(3e-4 < rate < 3e-3 for rate in proposals) > 15
    elsewhere = [propose(WIDE, history(200, best=0.05), number, {})["learning_rate"] for number in range(200, 220)]
    assert sum(3e-4 < rate < 3e-3 for rate in elsewhere) < 5


def test_a_proposal_keeps_the_values_that_a_ticket_fixes() -> None:
    assert propose(WIDE, history(20), 20, {"epochs": 7})["epochs"] == 7
    assert propose(WIDE, history(20), 20, {"learning_rate": 0.05, "epochs": 2}) == {"epochs": 2, "learning_rate": 0.05}


def test_a_sampler_sees_no_trial_beyond_its_history() -> None:
    """Trials beyond the limit change no proposal: the limit applies to what TPE reads, not only to a cache."""
    trials = history(HISTORY + 200)
    left_out = next(trial for trial in trials if trial not in limit_history(trials))
    before = propose(WIDE, trials, len(trials), {})
    ranges = space.distributions(WIDE)
    worst = {"epochs": 9, "learning_rate": 0.1}
    trials[left_out.number] = create_trial(value=0.0, params=worst, distributions=ranges)
    trials[left_out.number].number = left_out.number
    assert propose(WIDE, trials, len(trials), {}) == before


def prunes(accuracies: dict[int, float], *others: dict[int, float]) -> bool:
    """Whether a slack of 0.1 at step 100 prunes a trial with these accuracies, given other running trials."""
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


SIZES = [512, 4, 64, 8, 128, 16, 256, 32]
NETWORKS = {
    "architecture": {"choices": ["simple", "cnn", "resnet"]},
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "filters": [
        {"low": 2, "high": 8, "when": {"architecture": "simple"}},
        {"low": 16, "high": 64, "when": {"architecture": "cnn"}},
    ],
    "blocks": {"choices": [1, 2, 3, 4], "when": {"architecture": ["cnn", "resnet"]}},
    "dropout": {"low": 0.0, "high": 0.5, "when": {"architecture": "resnet", "blocks": 3}},
}


def trials_of(defined: StudyDefinition, points: list[space.Point], values: list[float]) -> list[FrozenTrial]:
    """Complete trials as stored in a database."""
    ranges, trials = space.distributions(defined), []
    for number, (point, value) in enumerate(zip(points, values, strict=True)):
        allowed = {name: ranges[name] for name in point}
        trials.append(create_trial(value=value, params=point, distributions=allowed))
        trials[-1].number = number
    return trials


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_numbers_in_choices_are_ordered(kind: str) -> None:
    """An untried value between two good ones is likely; without an order all untried values are equally likely."""
    sized = definition(sampler=kind, space={"batch_size": {"choices": SIZES}})
    points = [{"batch_size": size} for size in (4, 16, 64, 512)] * 6
    trials = trials_of(sized, points, [0.9 if point["batch_size"] in (16, 64) else 0.5 for point in points])
    near = [propose(sized, trials, number, {})["batch_size"] for number in range(len(trials), len(trials) + 24)]
    assert near.count(32) > sum(near.count(size) for size in (8, 128, 256))
    assert set(near) <= set(SIZES)


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc"])
def test_a_proposal_has_exactly_the_hyperparameters_searched_at_its_point(kind: str) -> None:
    networks = definition(sampler=kind, defaults={"architecture": "cnn", "blocks": 2}, space=NETWORKS)
    points: list[space.Point] = []
    for number in range(60):
        values = [0.5 + 0.01 * point.get("blocks", 0) for point in points]
        points.append(propose(networks, trials_of(networks, points, values), number, {}))
    assert all(is_complete(networks.space, point) for point in points)
    kinds = {tuple(sorted(point)) for point in points}
    both = ("architecture", "learning_rate")
    assert kinds >= {tuple(sorted((*both, "filters"))), tuple(sorted((*both, "filters", "blocks")))}
    for point in points:
        for name, value in point.items():
            table = applying(networks.space, name, point)
            assert table is not None
            assert table.has(value)


def test_a_proposal_is_near_what_was_good_under_its_condition() -> None:
    """The best learning rate is at one end for all networks; the best number of filters at one end for each."""
    networks = definition(defaults={"architecture": "cnn", "blocks": 2}, space=NETWORKS, seed=4)
    points = [space.random_point(networks.space, 1, index, {}) for index in range(150)]

    def value(point: space.Point) -> float:
        if point["architecture"] == "resnet":
            return 0.5
        best, width = {"simple": (8, 6), "cnn": (16, 48)}[point["architecture"]]
        far = abs(point["filters"] - best) / width
        return 0.9 - 0.1 * abs(math.log10(point["learning_rate"] / 0.01)) - 0.3 * far

    trials = trials_of(networks, points, [value(point) for point in points])
    for network, few in (("simple", False), ("cnn", True)):
        near = [propose(networks, trials, number, {"architecture": network})["filters"] for number in range(150, 190)]
        middle = {"simple": 5, "cnn": 40}[network]
        assert sum((filters < middle) == few for filters in near) > 26, (network, near)


def test_fixed_values_decide_which_other_hyperparameters_are_proposed() -> None:
    networks = definition(defaults={"architecture": "cnn", "blocks": 2}, space=NETWORKS)
    fixed = propose(networks, [], 0, {"architecture": "resnet", "blocks": 3})
    assert fixed.keys() == {"architecture", "blocks", "learning_rate", "dropout"}
    assert propose(networks, [], 0, {"architecture": "simple"}).keys() == {"architecture", "learning_rate", "filters"}


def test_a_trial_that_is_not_a_point_of_the_space_is_ignored() -> None:
    networks = definition(defaults={"architecture": "cnn", "blocks": 2}, space=NETWORKS)
    points = [space.random_point(networks.space, 1, index, {}) for index in range(30)]
    trials = trials_of(networks, points, [0.5 + 0.01 * index for index in range(30)])
    strange = trials_of(
        networks,
        [
            {"architecture": "simple", "learning_rate": 0.1, "filters": 64},  # of another network
            {"architecture": "simple", "learning_rate": 0.1},
            {"architecture": "simple", "learning_rate": 0.1, "filters": 4, "blocks": 2},
        ],
        [0.99] * 3,
    )
    for number, trial in enumerate(strange, start=30):
        trial.number = number
    assert propose(networks, [*trials, *strange], 40, {}) == propose(networks, trials, 40, {})
