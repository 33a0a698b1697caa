"""Optuna's sampler and pruner for a study, and what each gets to see."""

import copy
import heapq
from contextlib import suppress
from typing import Any, Self

import optuna
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
from search.study.definition import StudyDefinition
from search.study.record import FINISHED, STEPS_PER_EPOCH
from search.study.space import Point, distributions


class SlackPruner(BasePruner):
    """Prunes a trial whose error is more than a share above the least error of any trial at that step.

    After the bandit policy of Azure Machine Learning, whose slack is a share of the metric; here
    it is one of the error, and falls with the fourth root of the step, as good trials come closer
    to each other while they train. A rule that ranks trials, such as successive halving, ends good
    ones as well where many are alike. There is no grace for what begins slowly and ends well.

    Args:
        slack: the share, at step `unit`.
        unit: a number of steps; with it, 16 times the steps halve the share.
    """

    def __init__(self, slack: float, unit: int) -> None:
        self.slack, self.unit = slack, unit

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's last report, an accuracy in [0, 1], is too far behind. Running trials count too."""
        step = trial.last_step
        if step is None:
            return False
        best = max(each.intermediate_values.get(step, 0.0) for each in study.get_trials(deepcopy=False))
        share: float = self.slack * (self.unit / step) ** 0.25
        return 1 - trial.intermediate_values[step] > (1 - best) * (1 + share)


HISTORY = 1000  # finished trials that a sampler looks at
TPE_BEST = 25  # trials of them that TPE counts as good, at the most

SLACK = 0.05  # of the least error: how much more a trial may have after one epoch


def sampler(definition: StudyDefinition, number: int) -> BaseSampler:
    """A sampler for one trial. Two workers never share a sequence of random numbers."""
    seed = derive(definition.seed, "sampler", number) % 2**32
    if definition.sampler == "tpe":
        return TPESampler(seed=seed)
    if definition.sampler == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)  # unused: a ticket of these samplers holds its parameters


def propose(definition: StudyDefinition, trials: list[FrozenTrial], number: int, fixed: Point) -> Point:
    """The parameters of a trial.

    The sampler works on a study in memory, which holds what it may see and nothing else. What Optuna would refuse to
    add is left out: a trial that was enqueued without this package may be outside its ranges.

    Args:
        trials: those of the study; the trial itself and waiting ones are not looked at.
        number: of the trial.
        fixed: parameters that its ticket holds.
    """
    ranges = distributions(definition)
    if fixed.keys() >= ranges.keys():
        return {name: fixed[name] for name in ranges}
    study = optuna.create_study(direction="maximize", sampler=sampler(definition, number))
    for trial in limit_history([trial for trial in trials if trial.number != number]):
        with suppress(ValueError):
            study.add_trial(_shown(trial))
    if fixed:
        study.enqueue_trial(fixed)
    return study.ask(ranges).params


class _ShownTrial(FrozenTrial):
    """One that a study takes as it is: a deep copy of each would take longer than all else that a sampler does.

    What it holds is that of the trial itself, which is safe as no sampler changes the parameters or values of a trial.
    """

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return copy.copy(self)


def _shown(trial: FrozenTrial) -> FrozenTrial:
    """What a sampler looks at of a trial."""
    return _ShownTrial(
        number=trial.number,
        trial_id=trial.number,
        state=trial.state,
        value=trial.value,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        user_attrs={},
        system_attrs={},
    )


def limit_history(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that tell a sampler most, so that sampling takes no longer as a study grows.

    Those that run, the newest finished ones, and the best: TPE's good trials are the best
    tenth, 25 at the most, so that only the others, to which it gives the less weight the
    older they are, become fewer.
    """
    finished = [trial for trial in trials if trial.state in FINISHED]
    kept = {trial.number for trial in finished}
    if len(finished) > HISTORY:
        complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
        best = heapq.nlargest(TPE_BEST, complete, key=lambda trial: trial.value or 0.0)
        kept = {trial.number for trial in (*best, *finished[TPE_BEST - HISTORY :])}
    return [trial for trial in trials if trial.number in kept or trial.state == TrialState.RUNNING]


def pruner(definition: StudyDefinition) -> BasePruner:
    """The pruner. Its first verdict falls after a quarter of an epoch, the first report."""
    first = STEPS_PER_EPOCH // 4
    longest = definition.longest_epochs() * STEPS_PER_EPOCH
    pruners: dict[str, Any] = {
        "slack": lambda: SlackPruner(SLACK, STEPS_PER_EPOCH),
        "halving": lambda: SuccessiveHalvingPruner(min_resource=first, reduction_factor=4),
        "hyperband": lambda: HyperbandPruner(min_resource=first, max_resource=longest, reduction_factor=3),
        "median": lambda: MedianPruner(n_startup_trials=5),
        "percentile": lambda: PercentilePruner(25.0, n_startup_trials=5),
        "none": NopPruner,
    }
    made: BasePruner = pruners[definition.pruner]()
    return made
