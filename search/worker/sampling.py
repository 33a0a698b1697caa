"""Optuna's sampler and pruner for a study, and the trials that each is shown."""

import copy
import heapq
import warnings
from collections.abc import Iterator
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from fmnist.seeds import derive
from search.database.optuna_schema import suggest
from search.queue import scheduler
from search.queue.scheduler import Progress
from search.study.definition import StudyDefinition
from search.study.parameters import Parameter, Point, applying, has_conditions, is_complete, walk
from search.study.record import FINISHED, STEPS_PER_EPOCH, paused_of
from search.study.space import distribution


class SlackPruner(BasePruner):
    """Prunes a trial whose error exceeds the lowest error of any trial at the same step by more than a share.

    After the bandit policy of Azure Machine Learning, whose slack is a share of the metric. Here it is a share of
    the error and falls with the fourth root of the step, because good trials converge while they train. Rules that
    rank trials, such as successive halving, also prune good ones where many are alike. Trials that start slowly and
    end well are pruned.

    Args:
        slack: the share at step `unit`.
        unit: number of steps; at 16 times as many, the share is half as large.
    """

    def __init__(self, slack: float, unit: int) -> None:
        self.slack, self.unit = slack, unit

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's last accuracy, in [0, 1], is too far behind that of any other trial, running or not."""
        step = trial.last_step
        if step is None:
            return False
        best = max(each.intermediate_values.get(step, 0.0) for each in study.get_trials(deepcopy=False))
        share: float = self.slack * (self.unit / step) ** 0.25
        return 1 - trial.intermediate_values[step] > (1 - best) * (1 + share)


HISTORY = 1000  # finished trials that a sampler is shown
TPE_BEST = 25  # TPE models at most that many as good ones

SLACK = 0.05  # how much a trial's error may exceed the lowest one after one epoch, as a share


def sampler(definition: StudyDefinition, number: int) -> BaseSampler:
    """A sampler for one trial, seeded by its number: no two workers share a sequence of random numbers."""
    seed = derive(definition.seed, "sampler", number) % 2**32
    if definition.sampler == "tpe":
        if not has_conditions(definition.space):
            return TPESampler(seed=seed)
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            # Without groups TPE would model only the parameters that all trials have, and draw the others at random.
            return TPESampler(seed=seed, multivariate=True, group=True)
    if definition.sampler == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)  # for parameters that a ticket leaves open


def propose(definition: StudyDefinition, trials: list[FrozenTrial], number: int, fixed: Point) -> Point:
    """Sample the parameters of a trial.

    The sampler works on a study in memory that holds exactly the trials it may see.

    Args:
        trials: of the study; the trial itself and waiting ones are ignored.
        number: of the trial.
        fixed: parameters set by its ticket.
    """
    asked: list[optuna.Trial] = []  # of that study, created on first use

    def choose(name: str, table: Parameter) -> Any:
        if name in fixed:
            return fixed[name]
        if not asked:
            study = optuna.create_study(direction="maximize", sampler=sampler(definition, number))
            others = _with_paused(definition, [trial for trial in trials if trial.number != number])
            for trial in _visible(definition, limit_history(others)):
                study.add_trial(trial)
            asked.append(study.ask())
        suggested = suggest(asked[0], _seen_as(definition, name, table), _scale(table))
        ranked = list(_ranks(table))
        return ranked[suggested] if ranked else suggested

    return walk(definition.space, choose)


def _with_paused(definition: StudyDefinition, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials, with paused ones shown as pruned, because TPE treats running ones as bad.

    GP models complete trials only, of which there are few: it is shown the others with their forecast accuracy.
    """
    if definition.pruner != "freeze":
        return trials
    best: dict[int, float] = {}
    for trial in trials:
        for at, accuracy in trial.intermediate_values.items():
            best[at] = max(best.get(at, 0.0), accuracy)
    seen = []
    for trial in trials:
        paused = trial.state == TrialState.WAITING and paused_of(trial) is not None
        step, shown = trial.last_step, copy.copy(trial)
        if step is None or not (paused or trial.state == TrialState.PRUNED):
            seen.append(trial)
            continue
        value = trial.intermediate_values[step]
        shown.state, shown.datetime_complete = TrialState.PRUNED, trial.datetime_complete or trial.datetime_start
        if definition.sampler == "gp":
            end = trial.params.get("epochs", definition.defaults.epochs) * STEPS_PER_EPOCH
            shown.state = TrialState.COMPLETE
            value = scheduler.expected(Progress(trial.number, step, value, end), best)
        shown.value = value
        seen.append(shown)
    return seen


def _seen_as(definition: StudyDefinition, name: str, table: Parameter) -> str:
    # Each of several tables is a parameter of its own.
    tables = definition.space[name]
    number = next(number for number, each in enumerate(tables, start=1) if each is table)
    return name if len(tables) == 1 else f"{name} #{number}"


def _ranks(table: Parameter) -> dict[Any, int]:
    # Samplers see the ranks of numbers in `choices`, because Optuna's categories have no order. Empty for other tables.
    ranked = sorted(table.choices) if table.choices is not None and table.ordered else []
    return {value: rank for rank, value in enumerate(ranked)}


def _scale(table: Parameter) -> BaseDistribution:
    ranks = _ranks(table)
    return IntDistribution(0, len(ranks) - 1) if ranks else distribution(table)


class _VisibleTrial(FrozenTrial):
    """Makes `add_trial` copy shallowly: deep copies would take longer than the rest of sampling.

    Sharing is safe because no sampler changes a trial's parameters or values.
    """

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return copy.copy(self)


def _visible(definition: StudyDefinition, trials: list[FrozenTrial]) -> Iterator[FrozenTrial]:
    # Leaves out trials that are no point of the space: one enqueued by another program may lie outside its ranges,
    # and one claimed just now may have no parameters yet.
    scales = {
        id(table): (_seen_as(definition, name, table), _scale(table), _ranks(table))
        for name, tables in definition.space.items()
        for table in tables
    }
    for trial in trials:
        if not is_complete(definition.space, trial.params):
            continue
        params, distributions = {}, {}
        for name, value in trial.params.items():
            known, scale, ranks = scales[id(applying(definition.space, name, trial.params))]
            params[known], distributions[known] = ranks[value] if ranks else value, scale
        yield _VisibleTrial(
            number=trial.number,
            trial_id=trial.number,
            state=trial.state,
            value=trial.value,
            params=params,
            distributions=distributions,
            intermediate_values=trial.intermediate_values,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            user_attrs={},
            system_attrs={},
        )


def limit_history(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The most informative trials, so that sampling does not slow down as a study grows.

    They are the running ones, the newest finished ones, and the best. TPE models the best tenth, at most 25, as good,
    so only other trials are left out, to which it gives less weight the older they are.
    """
    finished = [trial for trial in trials if trial.state in FINISHED]
    kept = {trial.number for trial in finished}
    if len(finished) > HISTORY:
        complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
        best = heapq.nlargest(TPE_BEST, complete, key=lambda trial: trial.value or 0.0)
        kept = {trial.number for trial in (*best, *finished[TPE_BEST - HISTORY :])}
    return [trial for trial in trials if trial.number in kept or trial.state == TrialState.RUNNING]


def pruner(definition: StudyDefinition) -> BasePruner:
    """A study's pruner. It is first asked after a quarter of an epoch."""
    first = STEPS_PER_EPOCH // 4
    longest = definition.longest_epochs() * STEPS_PER_EPOCH
    pruners: dict[str, Any] = {
        "slack": lambda: SlackPruner(SLACK, STEPS_PER_EPOCH),
        "halving": lambda: SuccessiveHalvingPruner(min_resource=first, reduction_factor=4),
        "hyperband": lambda: HyperbandPruner(min_resource=first, max_resource=longest, reduction_factor=3),
        "median": lambda: MedianPruner(n_startup_trials=5),
        "percentile": lambda: PercentilePruner(25.0, n_startup_trials=5),
        "freeze": NopPruner,  # the queue pauses trials instead
        "none": NopPruner,
    }
    made: BasePruner = pruners[definition.pruner]()
    return made
