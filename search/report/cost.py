"""Accuracy against cost in seconds, parameters, epochs and multiply-adds, with Pareto fronts."""

from dataclasses import asdict, dataclass
from functools import cache

from optuna.trial import FrozenTrial

from fmnist.complexity import SHAPE, Complexity, complexity
from fmnist.hyperparameters import Hyperparameters
from search.results.ranking import Configuration
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import saved_of

COSTS = {
    "seconds": "seconds per run",
    "parameters": "parameters",
    "epochs": "epochs",
    "epoch_seconds": "seconds per epoch",
    "multiply_adds": "multiply-adds per image",
}


@dataclass(frozen=True)
class Cost:
    """Accuracy and cost of a configuration.

    trial: its number, if configurations are trained once. fronts: the COSTS for which it is on the Pareto front: no
    other configuration matches it at lower cost or beats it at the same cost.
    """

    label: str
    trial: int | None
    accuracy: float
    low: float | None
    high: float | None
    seconds: float
    parameters: int
    epochs: int
    epoch_seconds: float
    multiply_adds: int
    fronts: frozenset[str]


def costs(definition: StudyDefinition, ranking: list[Configuration], trials: list[FrozenTrial]) -> list[Cost]:
    """The cost of each configuration, in the order of the ranking; trials: all trials of the study."""
    count = cache(complexity)
    values: list[dict[str, float]] = []
    for configuration in ranking:
        hyperparameters = space.hyperparameters_of(definition, configuration.params)
        seconds, epochs = configuration.seconds, hyperparameters.epochs
        if definition.is_own:  # only workers run the user's code
            saved = saved_of(trials[configuration.trials[0]])
            if saved is None or saved.complexity is None:
                return []
            found = asdict(Complexity(*saved.complexity))
        else:
            found = asdict(count(Hyperparameters(**hyperparameters.model_dump(include=set(SHAPE)))))
        values.append({"seconds": seconds, "epochs": epochs, "epoch_seconds": seconds / epochs, **found})
    # Configurations with a diverged run are on no front: their mean covers the successful runs only.
    eligible = [place for place, configuration in enumerate(ranking) if configuration.whole]
    accuracies = [ranking[place].accuracy.mean for place in eligible]
    fronts = {
        name: {eligible[place] for place in _front(accuracies, [values[each][name] for each in eligible])}
        for name in COSTS
    }
    return [
        Cost(
            label=configuration.label,
            trial=configuration.trials[0] if definition.seeds == 1 else None,
            accuracy=configuration.accuracy.mean,
            low=configuration.accuracy.low,
            high=configuration.accuracy.high,
            fronts=frozenset(name for name in COSTS if place in fronts[name]),
            **values[place],  # type: ignore[arg-type]
        )
        for place, configuration in enumerate(ranking)
    ]


def varied(costs: list[Cost]) -> dict[str, str]:
    """The COSTS in which the configurations differ."""
    return {name: title for name, title in COSTS.items() if len({getattr(cost, name) for cost in costs}) > 1}


def _front(accuracies: list[float], costs: list[float]) -> set[int]:
    """Indices on the Pareto front. Equal accuracies are common, as accuracies count images."""
    pairs = list(zip(accuracies, costs, strict=True))
    return {
        place
        for place, (accuracy, cost) in enumerate(pairs)
        if not any((a >= accuracy and c < cost) or (a > accuracy and c <= cost) for a, c in pairs)
    }
