"""A pruner that ends what is too far behind the best trial at the same step."""

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial


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
