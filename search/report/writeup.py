"""Comparison with the write-up that this project started from.

A student's "Fashion-MNIST classification using convolutional neural networks": one convolution with kernel size 5 and
8 filters, flips and rotations, trained once each for 3, 5 and 7 epochs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import stdev

from optuna.trial import FrozenTrial, TrialState

from fmnist.data import CLASSES
from search.formatting import percent, points
from search.results.intervals import Difference, Estimate, Pooled, estimate
from search.study.definition import StudyDefinition
from search.study.record import STEPS_PER_EPOCH, saved_of

# Test accuracy after each epoch, and F1 of each class at the end, by the number of epochs.
WRITEUP_ACCURACY = {
    3: (0.8378, 0.8594, 0.8760),
    5: (0.8116, 0.8319, 0.8404, 0.8504, 0.8487),
    7: (0.8065, 0.8144, 0.8403, 0.8425, 0.8543, 0.8581, 0.8603),
}
F1 = {
    3: (0.82, 0.98, 0.81, 0.89, 0.80, 0.97, 0.61, 0.94, 0.97, 0.95),
    5: (0.79, 0.98, 0.75, 0.88, 0.73, 0.95, 0.49, 0.94, 0.96, 0.95),
    7: (0.79, 0.98, 0.77, 0.88, 0.78, 0.94, 0.60, 0.93, 0.96, 0.95),
}


@dataclass(frozen=True)
class Row:
    """A number of the write-up and ours; name: the epoch or the class."""

    epochs: int
    name: str
    theirs: float
    ours: Estimate


@dataclass(frozen=True)
class Comparison:
    """The write-up's numbers and ours.

    differences: of our final accuracies by pairs of epochs, corrected for all pairs.
    """

    by_epoch: list[Row]
    by_class: list[Row]
    differences: dict[tuple[int, int], Difference]

    def final(self, epochs: int) -> Row:
        """The accuracy after the last of `epochs` epochs."""
        return next(row for row in self.by_epoch if row.epochs == epochs and row.name == str(epochs))


def compare(definition: StudyDefinition, trials: Iterable[FrozenTrial]) -> Comparison | None:
    """Compare our complete trials with the write-up.

    Trials that differ from the default in more than their epochs are left out. None until each number of epochs has
    two complete trials, and if trials are not scored on the test images.
    """
    if definition.score_on != "test":
        return None
    defaults = definition.default_values
    groups: dict[int, list[FrozenTrial]] = {epochs: [] for epochs in WRITEUP_ACCURACY}
    for trial in trials:
        epochs = trial.params.get("epochs", definition.defaults.epochs)
        others = {name: value for name, value in trial.params.items() if name != "epochs"}
        is_default = all(value == defaults.get(name) for name, value in others.items())
        if trial.state == TrialState.COMPLETE and epochs in groups and is_default:
            groups[epochs].append(trial)
    if any(len(group) < 2 for group in groups.values()):
        return None
    finals = Pooled([[trial.value or 0.0 for trial in group] for group in groups.values()])
    place = {epochs: index for index, epochs in enumerate(groups)}
    differences = {(a, b): finals.difference(place[a], place[b]) for a, b in ((3, 7), (7, 5), (3, 5))}
    return Comparison(
        by_epoch=[
            Row(epochs, str(epoch), theirs, estimate([_accuracy(trial, epoch) for trial in group]))
            for epochs, group in groups.items()
            for epoch, theirs in enumerate(WRITEUP_ACCURACY[epochs], start=1)
        ],
        by_class=[
            Row(epochs, name, F1[epochs][index], estimate([_f1(trial, index) for trial in group]))
            for epochs, group in groups.items()
            for index, name in enumerate(CLASSES)
        ],
        differences={pair: found for pair, found in differences.items() if found},
    )


def verdict(comparison: Comparison) -> str:
    """Whether the write-up's order, 3 before 7 before 5 epochs, is significant in our training runs."""
    ours = {epochs: comparison.final(epochs).ours for epochs in WRITEUP_ACCURACY}
    confirmed = [pair for pair, found in comparison.differences.items() if found.low > 0]
    reversed_ = [pair for pair, found in comparison.differences.items() if found.high < 0]
    means = ", ".join(f"{epochs} epochs {percent(ours[epochs].mean)}" for epochs in WRITEUP_ACCURACY)
    first = [accuracies[0] for accuracies in WRITEUP_ACCURACY.values()]
    theirs = (
        "The write-up's single training run of each cannot show it: after the first epoch, which is the same in all "
        f"three, their accuracies already differ by {points(max(first) - min(first))} points (standard deviation "
        f"{points(stdev(first))})."
    )
    order = "The write-up's order, 3 before 7 before 5 epochs,"
    if {(3, 7), (7, 5)} <= set(confirmed):
        return f"{order} also holds in our training runs: {means}. {theirs}"
    if reversed_:
        found = "; ".join(_worse(pair, comparison.differences[pair]) for pair in reversed_)
        kept = "".join(f"; {_better(pair, comparison.differences[pair])}" for pair in confirmed)
        return f"{order} does not hold: with several seeds {found}{kept}. {theirs}"
    if confirmed:
        found = "; ".join(_better(pair, comparison.differences[pair]) for pair in confirmed)
        return f"{order} is only partly significant in our training runs ({means}): {found}. {theirs}"
    return f"{order} is not significant in our training runs ({means}). {theirs}"


def _better(pair: tuple[int, int], found: Difference) -> str:
    first, second = pair
    interval = f"{points(found.low)} to {points(found.high)}"
    return f"{first} epochs are {points(found.mean)} points better than {second} ({interval})"


def _worse(pair: tuple[int, int], found: Difference) -> str:
    return _better(pair[::-1], Difference(-found.mean, -found.high, -found.low))


def _accuracy(trial: FrozenTrial, epoch: int) -> float:
    return trial.intermediate_values[epoch * STEPS_PER_EPOCH]


def _f1(trial: FrozenTrial, index: int) -> float:
    saved = saved_of(trial)
    assert saved  # complete trials have a record
    confusion = saved.confusion
    predicted = sum(row[index] for row in confusion)
    both = predicted + sum(confusion[index])
    return 2 * confusion[index][index] / both if both else 0.0
