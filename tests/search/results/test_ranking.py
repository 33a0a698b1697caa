from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.report.cost import costs
from search.results import wording
from search.results.finalists import Finalist
from search.results.intervals import Pooled
from search.results.ranking import eliminated, rank
from search.results.wording import name
from search.study.definition import StudyDefinition
from search.study.record import CHECKPOINT, REASON
from tests.factories import TWO, ended

RANGES = {"epochs": IntDistribution(1, 9), "architecture": CategoricalDistribution(["cnn", "simple"])}


def trial(value: float, seconds: float = 1.0, state: TrialState = TrialState.COMPLETE, **params: Any) -> FrozenTrial:
    params = {"epochs": 6, "architecture": "cnn"} | params
    attributes = {CHECKPOINT: {"seconds": seconds}}
    return create_trial(state=state, value=value, params=params, distributions=RANGES, user_attrs=attributes)


def definition(**space: object) -> StudyDefinition:
    ranges = {"epochs": {"low": 1, "high": 9}, "architecture": {"choices": ["cnn", "simple"]}, **space}
    return StudyDefinition.model_validate({"space": ranges})


TRIALS = [
    trial(0.90, 2.0),
    trial(0.92, 4.0, epochs=9),
    trial(0.80, architecture="simple"),
    trial(0.91, 3.0),
    trial(0.93, 5.0, epochs=9),
    trial(0.99, state=TrialState.PRUNED),
    trial(0.95, state=TrialState.PRUNED, epochs=9),
]


def test_configurations_are_ranked_by_the_mean_of_their_complete_trials() -> None:
    best, default, simple = rank(definition(), TRIALS)
    assert (best.params, best.changes) == ({"epochs": 9, "architecture": "cnn"}, {"epochs": 9})
    assert best.accuracies == [0.92, 0.93]
    assert best.accuracy == Pooled([[0.92, 0.93], [0.90, 0.91], [0.80]]).estimate(0)
    assert best.seconds == 4.5
    assert (default.is_default, default.accuracies, default.seconds) == (True, [0.90, 0.91], 2.5)
    assert simple.accuracies == [0.80]


def test_differences_from_the_best_and_the_default_are_corrected_for_all_pairs() -> None:
    best, default, simple = rank(definition(), TRIALS)
    expected = Pooled([[0.92, 0.93], [0.90, 0.91], [0.80]]).difference(0, 1)
    assert (best.behind, best.gain) == (None, expected)
    assert (default.behind, default.gain) == (expected, None)
    assert (simple.behind, simple.gain) == (None, None)  # a single training run


def test_a_label_names_both_of_two_hyperparameters_or_the_changed_ones_of_more() -> None:
    assert [row.label for row in rank(definition(), TRIALS)][:2] == [
        "epochs=9 architecture=cnn",
        "epochs=6 architecture=cnn (default)",
    ]
    many = definition(filters={"low": 8, "high": 20})
    ranges = {**RANGES, "filters": IntDistribution(8, 20)}
    made = [
        create_trial(value=0.9, params={"epochs": epochs, "architecture": "cnn", "filters": 20}, distributions=ranges)
        for epochs in (9, 6)
    ]
    assert {row.label for row in rank(many, made)} == {"epochs=9", "epochs=6 architecture=cnn filters=20 (default)"}


def test_there_is_no_ranking_without_complete_trials() -> None:
    assert rank(definition(), TRIALS[-2:]) == []


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_parameters_does_not_matter(order: int) -> None:
    params = dict([("epochs", 6), ("architecture", "cnn")][::order])
    made = create_trial(value=0.94, params=params, distributions=RANGES)
    assert len(rank(definition(), [TRIALS[0], made])) == 1


def diverging(**params: Any) -> FrozenTrial:
    made = trial(0.0, state=TrialState.PRUNED, **params)
    made.user_attrs[REASON] = "diverged: the training loss is nan in epoch 1"
    return made


def grid() -> StudyDefinition:
    given = definition().model_dump(mode="json") | {"sampler": "grid", "seeds": 3}
    return StudyDefinition.model_validate(given)


def test_a_configuration_with_a_diverged_training_run_ranks_last() -> None:
    first, second = rank(definition(), [trial(0.95, epochs=9), trial(0.80), diverging(epochs=9)])
    assert (first.params["epochs"], first.whole, first.finished) == (6, True, 1)
    assert (second.params["epochs"], second.whole, second.finished) == (9, False, 2)
    assert (second.diverged, second.pruned, second.accuracies) == (1, 0, [0.95])
    assert wording.standing(second, "best") == "1 of 2 diverged"


def test_a_pruned_training_run_counts_in_studies_with_several_seeds() -> None:
    trials = [trial(0.95, epochs=9), trial(0.80), trial(0.5, state=TrialState.PRUNED, epochs=9)]
    best, _ = rank(definition(), trials)  # a search may sample a point twice
    assert (best.params["epochs"], best.pruned) == (9, 0)
    best, other = rank(grid(), trials)
    assert (best.params["epochs"], other.pruned, wording.lost(other)) == (6, 1, "1 of 2 pruned")


def test_after_two_seeds_those_that_can_hardly_win_are_eliminated() -> None:
    points = [{"epochs": epochs, "architecture": "cnn"} for epochs in (6, 7, 8, 9)]  # 6 is the default
    scores = {6: (0.800, 0.802), 7: (0.930, 0.932), 8: (0.929, 0.931), 9: (0.920, 0.922)}
    trials = [trial(score, epochs=epochs) for epochs, pair in scores.items() for score in pair]
    assert eliminated(grid(), trials[:-1], points) is None
    assert eliminated(grid(), trials, points) == [points[3]]
    assert eliminated(grid(), [*trials, trial(0.90, epochs=7), trial(0.99, epochs=8)], points) == [points[3]]
    assert eliminated(grid(), [*trials, trial(0.80, epochs=7), trial(0.80, epochs=8)], points) == []  # 9 is ahead now
    two = grid().model_copy(update={"seeds": 2})
    assert eliminated(two, trials, points) == []


def test_a_configuration_of_which_a_seed_diverged_is_eliminated() -> None:
    points = [{"epochs": epochs, "architecture": "cnn"} for epochs in (6, 7, 8)]
    trials = [trial(0.80), trial(0.81), trial(0.95, epochs=7), diverging(epochs=7), *[trial(0.9, epochs=8)] * 2]
    assert eliminated(grid(), trials, points) == [points[1]]


def test_the_best_is_named_only_if_all_its_training_runs_succeeded_and_none_has_more() -> None:
    better, worse = [trial(value, epochs=9) for value in (0.95, 0.96)], [trial(value) for value in (0.90, 0.91)]
    assert str(wording.ranked(rank(grid(), better + worse))).startswith("Best: epochs=9")
    assert wording.ranked(rank(grid(), [*better, *worse, trial(0.92)])) is None  # the leader has one training run fewer
    assert wording.ranked(rank(grid(), [*better, diverging(epochs=9), *worse])) is None
    sentences = wording.ranked(rank(grid(), [*better, diverging(epochs=9), *worse, trial(0.92)]))
    assert str(sentences).startswith("Best: epochs=6")
    assert "1 configuration" in str(sentences)
    without_best = wording.ranked(rank(grid(), [*better, diverging(epochs=9), *worse, diverging()]))
    assert str(without_best).startswith("There is no best configuration")


def test_diverged_configurations_are_on_no_pareto_front() -> None:
    trials = [trial(0.95, 1.0, epochs=9), diverging(epochs=9), trial(0.80, 2.0)]
    found = costs(grid(), rank(grid(), trials), trials)
    assert [bool(cost.fronts) for cost in found] == [True, False]


def test_the_default_and_the_starting_points_are_marked() -> None:
    started = StudyDefinition.model_validate(TWO.model_dump() | {"start": [{"filters": 2}, {"dropout": 0.2}]})
    points = [{"filters": 4}, {"filters": 2}, {"filters": 4, "dropout": 0.2}, {"filters": 8}]
    trials = [ended(started, 0.8 + place / 100, **point) for place, point in enumerate(points)]
    best, *others = rank(started, trials)
    assert [best.mark, *(other.mark for other in others)] == [None, "start 2", "start 1", "default"]
    assert [other.label.rpartition(" (")[2] for other in others] == ["start 2)", "start 1)", "default)"]
    assert name(Finalist(2, 0.8, others[0])) == "2 (start 2)"
