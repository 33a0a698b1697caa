"""Configurations ranked by the mean of their trainings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState

from search.formatting import assignments, marked
from search.results.intervals import Difference, Estimate, Pooled
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import reason_of, saved_of
from search.study.space import Point

FEW = 2  # parameters that are all named


@dataclass(frozen=True)
class Configuration:
    """One configuration and its complete trials.

    changes: what of `params` differs from the default. trials, accuracies: their numbers and what they came
    to. accuracy: their mean, with an interval by the deviation pooled over all configurations. seconds: that a
    training took, on average. behind: how far it is behind the best, None for that itself. gain: what it gains
    on the default, None for that itself. Both have intervals that hold together for all pairs of configurations, and
    are None where one of the two has a single training, or no training scored otherwise than another of its
    configuration. images: that scored it, None where that is not recorded. diverged, pruned: its trainings that came
    to no accuracy; of a study without repetitions pruned ones are not counted. mark: whether it is the default, or
    which of the study's starting points.
    """

    params: Point
    changes: Point
    trials: list[int]
    accuracies: list[float]
    accuracy: Estimate
    seconds: float
    behind: Difference | None
    gain: Difference | None
    images: int | None = None
    diverged: int = 0
    pruned: int = 0
    mark: str | None = None

    @property
    def finished(self) -> int:
        """All its trainings."""
        return self.accuracy.n + self.diverged + self.pruned

    @property
    def whole(self) -> bool:
        """Whether all its trainings came to an accuracy. Otherwise `accuracy` is that of those that went well."""
        return self.finished == self.accuracy.n

    @property
    def ties(self) -> bool:
        """Whether it cannot be told from the best; not where nothing tells how scores vary, as with one seed each."""
        return self.whole and self.behind is not None and self.behind.is_noise

    @property
    def is_default(self) -> bool:
        return not self.changes

    @property
    def label(self) -> str:
        """The configuration in few words: of many parameters only those that differ from the default."""
        shown = self.params if len(self.params) <= FEW or self.is_default else self.changes
        return marked(assignments(shown), self.mark)


def diverged(trial: FrozenTrial) -> bool:
    """Whether a trial ended because its loss was no longer a number."""
    return (reason_of(trial) or "").startswith("diverged")


def left_behind(trials: Iterable[FrozenTrial]) -> list[float]:
    """By how much each pruned trial was behind the best one at its last report, in accuracy."""
    best: dict[int, float] = {}
    last = []
    for trial in trials:
        for step, accuracy in trial.intermediate_values.items():
            best[step] = max(best.get(step, 0.0), accuracy)
        if trial.state == TrialState.PRUNED and trial.last_step is not None and not diverged(trial):
            last.append((trial.last_step, trial.intermediate_values[trial.last_step]))
    return [best[step] - accuracy for step, accuracy in last]


def by_configuration(trials: Iterable[FrozenTrial]) -> dict[space.Key, list[FrozenTrial]]:
    """The complete trials of each configuration, in order."""
    found: dict[space.Key, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            found.setdefault(space.key(trial.params), []).append(trial)
    return found


def accuracies_of(trials: list[FrozenTrial]) -> list[float]:
    """The values of complete trials."""
    return [trial.value for trial in trials if trial.value is not None]


def rank(definition: StudyDefinition, trials: Iterable[FrozenTrial]) -> list[Configuration]:
    """The configurations of complete trials, the best mean first.

    Those of which a training diverged come after all others: their mean is over the trainings that went well.
    Likewise those of which one was pruned, in a study that trains each several times. (Elsewhere a configuration
    comes up twice by chance, and one that was pruned the second time may still be the best.)
    """
    trials = list(trials)
    found = by_configuration(trials)
    cut = [trial for trial in trials if trial.state == TrialState.PRUNED]
    lost = Counter(space.key(trial.params) for trial in cut if diverged(trial))
    pruned = Counter(space.key(trial.params) for trial in cut if definition.seeds > 1 and not diverged(trial))
    values = {key: accuracies_of(of_one) for key, of_one in found.items()}
    ranked = sorted(found, key=lambda key: (lost[key] + pruned[key] > 0, -fmean(values[key])))
    default, marks = space.key(space.default_point(definition)), space.marks(definition)
    defaults = definition.default_values
    pooled = Pooled([values[key] for key in ranked])  # all of them, as the best is chosen among all
    # A default of which trainings came to nothing is no reference: its mean is of those that went well.
    reference = ranked.index(default) if default in found and not lost[default] + pruned[default] else None
    return [
        Configuration(
            params=found[key][0].params,
            changes={name: value for name, value in key if value != defaults.get(name)},
            trials=[trial.number for trial in found[key]],
            accuracies=values[key],
            accuracy=pooled.estimate(place),
            seconds=fmean(saved.seconds if (saved := saved_of(trial)) else 0.0 for trial in found[key]),
            behind=pooled.difference(0, place) if place else None,
            gain=None if reference in (None, place) else pooled.difference(place, reference),
            images=_images(found[key][0]),
            diverged=lost[key],
            pruned=pruned[key],
            mark=marks.get(key),
        )
        for place, key in enumerate(ranked)
    ]


def _images(trial: FrozenTrial) -> int | None:
    saved = saved_of(trial)
    return sum(map(sum, saved.confusion)) or None if saved else None
