"""Configurations ranked by the mean accuracy of their training runs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState

from search.formatting import assignments, marked
from search.results.intervals import Difference, Estimate, Pooled, overtaking_margin
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import FINISHED, reason_of, saved_of
from search.study.space import Point

RACE = 2  # seeds of each finalist before it can be eliminated
FEW = 2  # hyperparameters up to which a label names all of them


@dataclass(frozen=True)
class Configuration:
    """A configuration and its complete trials.

    changes: the entries of `params` that differ from the default. trials, accuracies: numbers and values of the
    complete trials. accuracy: their mean; its interval uses the deviation pooled over all configurations. seconds:
    mean duration of a training run. behind: the best mean minus this one; None for the best. gain: this mean minus the
    default's; None for the default. The intervals of both hold simultaneously for all pairs of configurations; both
    are None if one of the two has a single training run, or if no configuration's scores vary. images: number of
    images scored; None if not recorded. diverged, pruned: training runs without a score; pruned ones count only in
    studies with several seeds. mark: `default`, or `start 2` for a starting point.
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
        """Number of training runs, with or without a score."""
        return self.accuracy.n + self.diverged + self.pruned

    @property
    def whole(self) -> bool:
        """Whether all training runs have a score. Otherwise `accuracy` covers the successful ones only."""
        return self.finished == self.accuracy.n

    @property
    def ties(self) -> bool:
        """Whether it is statistically tied with the best; False without an interval, as with one seed each."""
        return self.whole and self.behind is not None and self.behind.is_noise

    @property
    def is_default(self) -> bool:
        return not self.changes

    @property
    def label(self) -> str:
        """The hyperparameters; if there are more than FEW, only those that differ from the default."""
        shown = self.params if len(self.params) <= FEW or self.is_default else self.changes
        return marked(assignments(shown), self.mark)


def diverged(trial: FrozenTrial) -> bool:
    """Whether a trial ended because its loss became infinite or NaN."""
    return (reason_of(trial) or "").startswith("diverged")


def left_behind(trials: Iterable[FrozenTrial]) -> list[float]:
    """For each pruned trial, the best accuracy at its last step minus its own."""
    best: dict[int, float] = {}
    last = []
    for trial in trials:
        for step, accuracy in trial.intermediate_values.items():
            best[step] = max(best.get(step, 0.0), accuracy)
        if trial.state == TrialState.PRUNED and trial.last_step is not None and not diverged(trial):
            last.append((trial.last_step, trial.intermediate_values[trial.last_step]))
    return [best[step] - accuracy for step, accuracy in last]


def by_configuration(trials: Iterable[FrozenTrial]) -> dict[space.Key, list[FrozenTrial]]:
    """The complete trials of each configuration, in the order given."""
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

    Configurations with a diverged training run rank last, as their mean covers the successful runs only. So do those
    with a pruned run in a study with several seeds. (In other studies a configuration is repeated by chance, and
    the best may be pruned the second time.)
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
    pooled = Pooled([values[key] for key in ranked])  # all, as the best is selected from all
    # A default with runs without a score is no reference: its mean would cover the successful runs only.
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


def eliminated(definition: StudyDefinition, trials: Iterable[FrozenTrial], points: list[Point]) -> list[Point] | None:
    """Configurations that can hardly become the best with the seeds that they have left.

    Judged by the first RACE training runs of each, after racing (Maron and Moore, 1994); those with diverged runs
    cannot win either. The default is never eliminated, as gains are measured against it, nor is the one that leads.

    Returns:
        Some of `points`; None if one of them has fewer finished training runs than RACE.
    """
    runs: dict[space.Key, list[FrozenTrial]] = {space.key(point): [] for point in points}
    for trial in trials:
        if trial.state in FINISHED:
            runs.setdefault(space.key(trial.params), []).append(trial)
    if any(len(each) < RACE for each in runs.values()):
        return None
    complete = {key: each for key, each in runs.items() if all(run.state == TrialState.COMPLETE for run in each)}
    if definition.seeds <= RACE or not complete:
        return []
    scores = {key: accuracies_of(each) for key, each in complete.items()}
    first = {key: each[:RACE] for key, each in scores.items()}
    least = max(map(fmean, first.values())) - overtaking_margin(list(first.values()), definition.seeds)
    kept = {key for key, each in first.items() if fmean(each) >= least}
    kept |= {max(scores, key=lambda key: fmean(scores[key])), space.key(space.default_point(definition))}
    return [point for point in points if space.key(point) not in kept]


def _images(trial: FrozenTrial) -> int | None:
    saved = saved_of(trial)
    return sum(map(sum, saved.confusion)) or None if saved else None
