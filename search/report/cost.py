"""What an accuracy costs: seconds, parameters, epochs, multiply-adds; and who is as good as any for that much."""

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
    "seconds": "seconds a training",
    "parameters": "parameters",
    "epochs": "epochs",
    "epoch_seconds": "seconds an epoch",
    "multiply_adds": "multiply-adds an image",
}


@dataclass(frozen=True)
class Cost:
    """A configuration's accuracy, and what it takes.

    trial: its number, where a configuration is trained once. fronts: the COSTS in which no other is as good for
    less, or better for no more.
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
    """The cost of each configuration, in the order of the ranking; trials: those of the study."""
    count = cache(complexity)
    values: list[dict[str, float]] = []
    for configuration in ranking:
        hyperparameters = space.hyperparameters_of(definition, configuration.params)
        seconds, epochs = configuration.seconds, hyperparameters.epochs
        if definition.is_own:  # whose code is for workers to run
            saved = saved_of(trials[configuration.trials[0]])
            if saved is None or saved.complexity is None:
                return []
            found = asdict(Complexity(*saved.complexity))
        else:
            found = asdict(count(Hyperparameters(**hyperparameters.model_dump(include=set(SHAPE)))))
        values.append({"seconds": seconds, "epochs": epochs, "epoch_seconds": seconds / epochs, **found})
    # None of which a training diverged: its mean is of those that went well, and the others would cost as much.
    whole = [place for place, configuration in enumerate(ranking) if configuration.whole]
    accuracies = [ranking[place].accuracy.mean for place in whole]
    fronts = {
        name: {whole[place] for place in _front(accuracies, [values[each][name] for each in whole])} for name in COSTS
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
    """Places on the Pareto front. Accuracies count images, so they often tie."""
    pairs = list(zip(accuracies, costs, strict=True))
    return {
        place
        for place, (accuracy, cost) in enumerate(pairs)
        if not any((a >= accuracy and c < cost) or (a > accuracy and c <= cost) for a, c in pairs)
    }
