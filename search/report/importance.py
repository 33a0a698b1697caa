"""Hyperparameter importance by two methods with bootstrap intervals, and the mean accuracy over two of them."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.database.optuna_schema import StudyOfTrials
from search.report.fanova import fanova
from search.results.intervals import CONFIDENCE
from search.results.ranking import diverged
from search.study import space
from search.study.definition import StudyDefinition
from search.study.parameters import Parameter
from search.study.record import PAUSED, STEPS_PER_EPOCH

FEWEST_FINISHED = 10  # trials below which PED-ANOVA is noise
FEWEST_BEST = 5  # top trials of PED-ANOVA, as its documentation recommends
FEWEST_COMPLETE = 20  # trials below which fANOVA is noise
BEST_SHARE = 0.2  # of the finished trials
RESAMPLES = 60  # of the bootstrap (Efron, 1979); fANOVA takes 0.04 s for each
FEW_RESAMPLES = 20  # under each condition, of which there may be many
TREES = 16  # of each fANOVA forest; 64 rank no better and take four times as long
NEWEST = 500  # trials analysed
NEWEST_COMPLETE = 120  # trials analysed by fANOVA, whose time grows faster than linearly
LATE = "epochs"  # no effect before training ends, as no schedule depends on it: see fmnist.training
ALIKE = "is undefined: all its trials have the same hyperparameters or the same accuracy"

Trials = Sequence[FrozenTrial]
Evaluate = Callable[..., dict[str, float]]  # importances of trials, with a keyword `seed`


@dataclass(frozen=True)
class Importance:
    """A share of 1, and its bootstrap interval, widened to contain the share if necessary."""

    share: float
    low: float
    high: float

    def as_words(self) -> str:
        return f"{self.share:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Importances:
    """Importance of each hyperparameter that all trials have.

    A method is None, with the reason in `missing`, if there are too few trials or they do not differ.

    ped_anova: for being among the `best` of `finished` trials (pruned ones count with their last accuracy). fanova:
    for the accuracy of the `complete` trials. conditional: hyperparameters that only some trials have. early:
    importance for an earlier accuracy, if too few trials are complete for fANOVA.
    """

    ped_anova: dict[str, Importance] | None
    fanova: dict[str, Importance] | None
    best: int
    finished: int
    complete: int
    missing: list[str]
    conditional: "dict[str, Conditional]" = field(default_factory=dict)
    early: "Early | None" = None

    @property
    def methods(self) -> dict[str, dict[str, Importance]]:
        """The shares by method, without methods that are None."""
        found = {"fANOVA": self.fanova, "PED-ANOVA": self.ped_anova}
        return {method: shares for method, shares in found.items() if shares}


@dataclass(frozen=True)
class Early:
    """Importance for the accuracy after `epoch`, over all trials that reached it.

    lost: trials that diverged before. without_epochs: whether `epochs` was searched; it is left out, as it has no
    effect yet.
    """

    epoch: float
    lost: int
    without_epochs: bool
    importances: Importances

    @property
    def when(self) -> str:
        """`epoch` in words: a quarter of an epoch, 2 epochs."""
        words = {0.25: "a quarter of an epoch", 0.5: "half an epoch", 1.0: "one epoch"}
        return words.get(self.epoch, f"{self.epoch:g} epochs")


@dataclass(frozen=True)
class Conditional:
    """Importance of a hyperparameter over the `finished` trials that have it.

    Shares are relative to all hyperparameters of these trials; a method is None if they are too few or do not differ.
    """

    finished: int
    ped_anova: Importance | None
    fanova: Importance | None


def importances(trials: Trials) -> Importances:
    """Importance by PED-ANOVA (Watanabe et al., 2023) and fANOVA (Hutter et al., 2014).

    Args:
        trials: all trials of a study.
    """
    valued = [trial for trial in trials if trial.state.is_finished() and trial.value is not None]
    found = _measured(valued)
    complete = sum(trial.state == TrialState.COMPLETE for trial in valued)
    return found if complete >= FEWEST_COMPLETE else replace(found, early=_early(trials))


def _early(trials: Trials) -> Early | None:
    """Importance at the last step before which only diverging trials were stopped; None with too few trials.

    Later steps lack the pruned trials, which would understate the hyperparameters that caused pruning.
    """
    begun = [trial for trial in trials if trial.state != TrialState.FAIL and trial.intermediate_values]
    # Running and interrupted trials do not limit the step: their progress says nothing about their accuracy.
    step = min((max(trial.intermediate_values) for trial in begun if _is_stopped(trial)), default=0)
    reached = [_at(trial, step) for trial in begun if step in trial.intermediate_values]
    found = _measured(reached) if len(reached) >= FEWEST_COMPLETE else None
    if not found or not found.methods:
        return None
    lost = sum(diverged(trial) and step not in trial.intermediate_values for trial in trials)
    return Early(step / STEPS_PER_EPOCH, lost, any(LATE in trial.params for trial in begun), found)


def _is_stopped(trial: FrozenTrial) -> bool:
    return (trial.state.is_finished() or PAUSED in trial.user_attrs) and not diverged(trial)


def _at(trial: FrozenTrial, step: int) -> FrozenTrial:
    """The trial as if complete at that step, without hyperparameters that take effect later."""
    seen = copy(trial)
    seen.state, seen.value = TrialState.COMPLETE, trial.intermediate_values[step]
    seen.params, seen.distributions = (
        {name: each for name, each in of.items() if name != LATE} for of in (trial.params, trial.distributions)
    )
    return seen


def _measured(trials: Trials) -> Importances:
    """Importance of the hyperparameters that all trials have, and of those that some have."""
    valued = trials[-NEWEST:]
    found = _of_shared(valued, RESAMPLES)
    names = dict.fromkeys(name for trial in valued for name in trial.params)
    by_name = {name: [trial for trial in valued if name in trial.params] for name in names}
    some = {name: subset for name, subset in by_name.items() if len(subset) < len(valued)}
    # Measured once per set of trials: fANOVA takes seconds, and hyperparameters often share a condition.
    subsets = {tuple(map(id, subset)): subset for subset in some.values()}
    measured = {key: _of_shared(subset, FEW_RESAMPLES) for key, subset in subsets.items()}
    conditional = {}
    for name, subset in some.items():
        within = measured[tuple(map(id, subset))]
        ped_anova, fanova = (method.get(name) if method else None for method in (within.ped_anova, within.fanova))
        conditional[name] = Conditional(len(subset), ped_anova, fanova)
    return replace(found, conditional=conditional)


def _of_shared(trials: Trials, resamples: int) -> Importances:
    """Importance of the hyperparameters that all of these trials have."""
    valued = _shared(trials)
    names = valued[0].params if valued else {}
    complete = [trial for trial in valued if trial.state == TrialState.COMPLETE]
    if names and sum(len({trial.params[name] for trial in valued}) > 1 for name in names) == 1:
        # The share of a single varying hyperparameter is always 1.
        return Importances(None, None, 0, len(valued), len(complete), [])
    best = min(max(FEWEST_BEST, round(BEST_SHARE * len(valued))), len(complete))
    missing = []
    ped_anova = of_variance = None
    if len(valued) < FEWEST_FINISHED or len(complete) < FEWEST_BEST:
        missing.append(
            f"Too few trials for PED-ANOVA: {FEWEST_FINISHED} finished and {FEWEST_BEST} complete ones are needed, of "
            f"{len(valued)} and {len(complete)} so far."
        )
    elif not _varied(valued):
        missing.append(f"PED-ANOVA {ALIKE}.")
    else:
        ped_anova = _with_intervals(valued, partial(_ped_anova, quantile=best / len(valued)), resamples)
    if len(complete) < FEWEST_COMPLETE:
        missing.append(
            f"Too few trials for fANOVA: {FEWEST_COMPLETE} complete ones are needed, {len(complete)} exist so far."
        )
    elif not _varied(complete):
        missing.append(f"fANOVA {ALIKE}.")
    else:
        complete = complete[-NEWEST_COMPLETE:]
        of_variance = _with_intervals(complete, partial(fanova, trees=TREES), resamples)
    return Importances(ped_anova, of_variance, best, len(valued), len(complete), missing)


def _shared(trials: Trials) -> list[FrozenTrial]:
    """The trials, reduced to the hyperparameters that all of them have."""
    names = _names(trials)
    reduced = []
    for trial in trials:
        params, distributions = ({name: of[name] for name in names} for of in (trial.params, trial.distributions))
        with suppress(ValueError):  # a value outside its stored range, enqueued by other software; samplers skip it too
            reduced.append(
                create_trial(state=trial.state, value=trial.value, params=params, distributions=distributions)
            )
    return reduced


def _names(trials: Trials) -> list[str]:
    return [name for name in trials[0].params if all(name in trial.params for trial in trials)] if trials else []


def _varied(trials: Trials) -> bool:
    return len({space.key(trial.params) for trial in trials}) > 1 and len({trial.value for trial in trials}) > 1


def _with_intervals(trials: Trials, evaluate: Evaluate, resamples: int) -> dict[str, Importance]:
    """Shares over all trials, with bootstrap intervals (percentile method)."""
    draw = np.random.default_rng(0)
    shares = _shares(trials, evaluate, 0)
    resampled = [
        _shares([trials[i] for i in draw.integers(len(trials), size=len(trials))], evaluate, resample)
        for resample in range(resamples)
    ]
    tail = (1 - CONFIDENCE) / 2
    intervals = {name: np.quantile([each[name] for each in resampled], [tail, 1 - tail]).tolist() for name in shares}
    return {
        name: Importance(share, min(share, intervals[name][0]), max(share, intervals[name][1]))
        for name, share in shares.items()
    }


def _shares(trials: Trials, evaluate: Evaluate, seed: int) -> dict[str, float]:
    """Each parameter's share of 1; equal shares if the trials do not differ."""
    if not _varied(trials):  # possible for a resample, and fANOVA would divide by zero
        return dict.fromkeys(trials[0].params, 1 / len(trials[0].params))
    found = {name: max(value, 0.0) for name, value in evaluate(trials, seed=seed).items()}
    total = sum(found.values())
    return {name: value / total if total else 1 / len(found) for name, value in found.items()}


def _ped_anova(trials: Trials, seed: int, quantile: float) -> dict[str, float]:  # noqa: ARG001  it draws nothing
    from optuna.importance import PedAnovaImportanceEvaluator  # it brings scikit-learn, which takes a second to import

    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a resample with a single value
        found = evaluator.evaluate(StudyOfTrials([copy(trial) for trial in trials]))
    return {name: float(value) for name, value in found.items()}


FEWEST = 10  # complete trials below which the map would show noise
SIDE = 25  # grid points along a range
WIDTH = 0.08  # of a range: standard deviation of the kernel
NEAR = 2.0  # kernel deviations within which a grid point needs a trial


@dataclass(frozen=True)
class Landscape:
    """Kernel-weighted mean accuracy of complete trials on a grid of two hyperparameters (Nadaraya and Watson, 1964).

    x, y: names. xs, ys: values on the grid. z: one row for each of ys; None where no trial is near. points: (x, y) of
    the trials.
    """

    x: str
    y: str
    xs: list[Any]
    ys: list[Any]
    z: list[list[float | None]]
    points: list[tuple[Any, Any]]


def position(parameter: Parameter, value: Any) -> float:
    """Position of a value on its axis, from 0 to 1; choices are evenly spaced, in the order of `ordered`."""
    if parameter.choices is not None:
        places = ordered(parameter)
        return places.index(value) / max(1, len(places) - 1)
    low, high = parameter.range
    if parameter.log:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def ordered(parameter: Parameter) -> list[Any]:
    """Choices in axis order: numbers by size, others as defined."""
    return sorted(parameter.values()) if parameter.ordered else parameter.values()


def foremost(space: Mapping[str, Parameter], importances: Importances | None) -> list[str]:
    """The two most important hyperparameters; both of a space of two; empty if importance is unknown."""
    if len(space) == 2:
        return list(space)
    shares = importances and (importances.fanova or importances.ped_anova)
    return sorted(shares, key=lambda name: shares[name].share, reverse=True)[:2] if shares else []


def landscape(definition: StudyDefinition, names: list[str], trials: list[FrozenTrial]) -> Landscape | None:
    """The mean accuracy over two named hyperparameters; None with too few complete trials."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    complete = [trial for trial in complete if trial.params.keys() >= set(names)]
    if len(names) < 2 or len(complete) < FEWEST:
        return None
    space = definition.ranges
    grids = [_grid(space[name]) for name in names]
    places = [np.array([_place(space[name], trial.params[name]) for trial in complete]) for name in names]
    axes = [np.array([_place(space[name], value) for value in grid]) for name, grid in zip(names, grids, strict=True)]
    squares = [(axis[:, None] - place) ** 2 for axis, place in zip(axes, places, strict=True)]
    distance = squares[0][None, :, :] + squares[1][:, None, :]  # (ys, xs, trials)
    weights = np.exp(-distance / (2 * WIDTH**2))
    means = weights @ np.array([trial.value for trial in complete]) / np.maximum(weights.sum(axis=2), 1e-300)
    near = distance.min(axis=2) <= (NEAR * WIDTH) ** 2
    return Landscape(
        x=names[0],
        y=names[1],
        xs=grids[0],
        ys=grids[1],
        z=[
            [mean if known else None for mean, known in zip(row, row_near, strict=True)]
            for row, row_near in zip(means.tolist(), near.tolist(), strict=True)
        ],
        points=[(trial.params[names[0]], trial.params[names[1]]) for trial in complete],
    )


def _place(parameter: Parameter, value: Any) -> float:
    if parameter.choices is not None:
        return float(ordered(parameter).index(value))  # so far apart that the kernel does not mix choices
    return position(parameter, value)


def _grid(parameter: Parameter) -> list[Any]:
    """Grid values along an axis: all values, or evenly spaced ones if a range has more than SIDE."""
    if parameter.choices is not None:
        return ordered(parameter)
    if (parameter.whole or not parameter.continuous) and parameter.count() <= SIDE:
        return parameter.values()
    spaced = np.geomspace if parameter.log else np.linspace
    return [float(value) for value in spaced(*parameter.range, SIDE)]
