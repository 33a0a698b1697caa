"""Cost of configurations, and Pareto fronts."""

import random
from typing import Any

import pytest

from fmnist.complexity import complexity
from search.report.cost import COSTS, Cost, costs, varied
from search.results.ranking import rank
from search.study.definition import StudyDefinition
from tests.factories import definition, ended

ARCHITECTURES = definition(
    defaults={"architecture": "cnn", "epochs": 4, "filters": 8, "residual": True, "kernel_size": 3},
    space={
        "architecture": {"choices": ["simple", "cnn", "resnet", "transformer"]},
        "filters": {"low": 4, "high": 16},
        "blocks": {"low": 1, "high": 4},
        "epochs": {"low": 1, "high": 8},
        "kernel_size": {"choices": [3, 4]},
        "hidden": {"low": 16, "high": 256},
    },
)
MADE: list[dict[str, Any]] = [
    {"architecture": "simple", "filters": 4},
    {"architecture": "cnn", "filters": 16, "blocks": 2},
    {"architecture": "resnet", "filters": 8, "epochs": 2},
    {"architecture": "transformer", "filters": 8, "blocks": 1},
    {"architecture": "cnn", "filters": 5, "kernel_size": 4, "hidden": 50},
]


def costs_of(defined: StudyDefinition, *trials: tuple[float, float, dict[str, Any]]) -> list[Cost]:
    """Costs of trials given as (accuracy, seconds, hyperparameters)."""
    made = [ended(defined, accuracy, seconds=seconds, **params) for accuracy, seconds, params in trials]
    return costs(defined, rank(defined, made), made)


def test_cost_is_the_complexity_of_the_network_and_its_training_time() -> None:
    found = costs_of(ARCHITECTURES, *((0.9 - place / 10, 12.0, params) for place, params in enumerate(MADE)))
    for cost, params in zip(found, MADE, strict=True):
        network = ARCHITECTURES.defaults.model_copy(update=params)
        counted = complexity(network)
        assert (cost.parameters, cost.multiply_adds) == (counted.parameters, counted.multiply_adds)
        assert (cost.seconds, cost.epoch_seconds) == (12.0, 12.0 / network.epochs)
        assert cost.epochs == network.epochs
    assert len({cost.parameters for cost in found}) == len(MADE)


def test_seconds_and_accuracy_are_means_over_the_training_runs() -> None:
    grid = definition(sampler="grid", seeds=2)
    (found,) = costs_of(grid, (0.8, 10.0, {}), (0.9, 14.0, {}))
    assert (found.seconds, found.accuracy, found.trial) == (12.0, pytest.approx(0.85), None)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.8 < 0.9 < found.high


def staircase(costs: list[Cost], name: str) -> set[str]:
    """The front by ascending cost: the most accurate at each cost, if better than everything cheaper."""
    front: set[str] = set()
    record = -1.0
    for price in sorted({getattr(cost, name) for cost in costs}):
        rows = [cost for cost in costs if getattr(cost, name) == price]
        best = max(row.accuracy for row in rows)
        if best > record:
            front |= {row.label for row in rows if row.accuracy == best}
            record = best
    return front


SIZES = definition(
    defaults={"architecture": "simple", "epochs": 3, "filters": 4},
    space={"filters": {"low": 1, "high": 30}, "epochs": {"low": 1, "high": 20}},
)


@pytest.mark.parametrize("seed", range(5))
def test_pareto_fronts_match_an_independent_reference_with_equal_accuracies_and_costs(seed: int) -> None:
    draw = random.Random(seed)
    points = draw.sample([(filters, epochs) for filters in range(1, 5) for epochs in range(1, 9)], 24)
    found = costs_of(
        SIZES,
        *(
            (draw.randint(80, 88) / 100, float(draw.randint(1, 6)), {"filters": filters, "epochs": epochs})
            for filters, epochs in points
        ),
    )
    assert len({cost.accuracy for cost in found}) < len(found) == 24
    for name in COSTS:
        assert {cost.label for cost in found if name in cost.fronts} == staircase(found, name)


def test_an_equal_accuracy_at_lower_cost_dominates_and_identical_ones_share_the_front() -> None:
    labels = [
        (cost.label, "seconds" in cost.fronts)
        for cost in costs_of(
            SIZES,
            (0.9, 20.0, {"filters": 1}),
            (0.9, 10.0, {"filters": 2}),
            (0.9, 10.0, {"filters": 3}),
            (0.8, 10.0, {"filters": 5}),
            (0.7, 5.0, {"filters": 6}),
        )
    ]
    assert labels == [(f"filters={filters} epochs=3", filters in (2, 3, 6)) for filters in (1, 2, 3, 5, 6)]


def test_the_cheapest_and_the_most_accurate_are_always_on_the_front() -> None:
    found = costs_of(SIZES, *((0.5 + n / 100, float(n % 7 + 1), {"filters": n + 1}) for n in range(20)))
    for name in COSTS:
        assert name in found[0].fronts
        assert name in min(found, key=lambda cost: (getattr(cost, name), -cost.accuracy)).fronts


def test_only_costs_that_differ_are_shown() -> None:
    rates = definition()
    alike = costs_of(rates, (0.9, 3.0, {"learning_rate": 0.001}), (0.8, 3.0, {"learning_rate": 0.002}))
    assert varied(alike) == {}
    slower = costs_of(rates, (0.9, 3.0, {"learning_rate": 0.001}), (0.8, 5.0, {"learning_rate": 0.002}))
    assert varied(slower).keys() == {"seconds", "epoch_seconds"}
    longer = costs_of(SIZES, (0.9, 3.0, {"epochs": 3}), (0.8, 3.0, {"epochs": 4}))
    assert varied(longer).keys() == {"epochs", "epoch_seconds"}
    assert [cost.epochs for cost in longer] == [3, 4]
    larger = costs_of(rates, (0.9, 3.0, {"filters": 2}), (0.8, 3.0, {"filters": 4}))
    assert varied(larger) == {name: COSTS[name] for name in ("parameters", "multiply_adds")}
    assert varied([]) == {}
    assert costs(rates, [], []) == []
