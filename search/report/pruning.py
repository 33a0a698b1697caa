"""What pruning saved, and what an audit says that it cost."""

from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from search.results.ranking import Share, diverged, share
from search.study.definition import StudyDefinition
from search.study.store import AUDIT, FINISHED, history_of

FEWEST_AUDITED = 10  # trials below which a rate of false prunes is not given
CONTENDERS = 3  # best completed trials that a pruned one would have had to be among; with fewer there is no rate


@dataclass(frozen=True)
class Pruning:
    """Epochs trained, and those that all trials would have taken to their ends.

    What an audit trained on is not counted, nor are trials that ended because they diverged.
    """

    trained: float
    whole: int

    @property
    def saved(self) -> float:
        """The share of the work that was not done."""
        return 1 - self.trained / self.whole


@dataclass(frozen=True)
class Audit:
    """Pruned trials that were trained to the end all the same.

    false: those that came to at least `bar`, the accuracy of the last of the best completed
    trials; None where too few trials were audited, or completed.
    """

    audited: int
    complete: int
    bar: float
    false: Share | None


def pruning(definition: StudyDefinition, trials: list[FrozenTrial]) -> Pruning | None:
    """What was saved by ending trials early; None if none was."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    ended = [trial for trial in finished if history_of(trial) and (AUDIT in trial.user_attrs or not diverged(trial))]
    if all(trial.state == TrialState.COMPLETE for trial in ended):
        return None
    trained = sum(min(trial.user_attrs.get(AUDIT, {}).get("since", last(trial)), last(trial)) for trial in ended)
    return Pruning(trained, sum(trial.params.get("epochs", definition.defaults.epochs) for trial in ended))


def audit(definition: StudyDefinition, trials: list[FrozenTrial]) -> Audit | None:
    """What became of the audited trials; None if the study has no audit, or nothing to hold them against."""
    complete = sorted((t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None), reverse=True)
    if not definition.audit or not complete:
        return None
    bar = complete[:CONTENDERS][-1]
    audited = [
        trial.user_attrs[AUDIT] for trial in trials if trial.state == TrialState.PRUNED and AUDIT in trial.user_attrs
    ]
    false = sum(each.get("accuracy", 0.0) >= bar for each in audited)  # one that diverged has none
    enough = len(audited) >= FEWEST_AUDITED and len(complete) >= CONTENDERS
    return Audit(len(audited), len(complete), bar, share(false, len(audited)) if enough else None)


def last(trial: FrozenTrial) -> float:
    """The last epoch that a trial was trained to."""
    return history_of(trial)[-1].epoch
