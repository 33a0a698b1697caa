"""What a study's numbers say, in sentences: none where the numbers do not carry it."""

import math
from dataclasses import dataclass
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from fmnist.hyperparameters import Hyperparameters
from search import words
from search.definition import StudyDefinition
from search.finalists import Standings
from search.parameter import Parameter
from search.ranking import Configuration
from search.report import writeup
from search.report.importance import Importance, Importances
from search.report.pruning import FEWEST_AUDITED, Audit, Pruning, diverged
from search.report.writeup import Comparison
from search.statistics import estimate
from search.study import history_of
from search.text import count, percent, points, short

FEWEST_FOR_EDGE = 10  # finished trials below which a best value at an edge tells nothing of the range
EDGE = 0.02  # of a range's width
BEST = 5  # trials whose curves are looked at
RISE = 1.02  # of a loss over its minimum: less is not called overfitting


@dataclass(frozen=True)
class Finding:
    """One sentence or two, and what they are about."""

    about: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """The numbers that findings are drawn from."""

    definition: StudyDefinition
    trials: list[FrozenTrial]
    importances: Importances
    ranking: list[Configuration]
    standings: Standings | None
    pruning: Pruning | None
    audit: Audit | None
    comparison: Comparison | None


def findings(evidence: Evidence) -> list[Finding]:
    """All that can be said of a study."""
    said = {
        "write-up": writeup.verdict(evidence.comparison) if evidence.comparison else None,
        "ranking": words.ranked(evidence.ranking) if evidence.definition.seeds > 1 else None,
        "noise": _noise(evidence),
        "importance": _importance(evidence.importances) if evidence.definition.seeds == 1 else None,
        "edge": _edges(evidence),
        "diverged": _diverged(evidence.trials),
        "overfitting": _overfitting(evidence),
        "improving": _improving(evidence),
        "pruning": _pruning(evidence.pruning),
        "audit": _audit(evidence.audit),
    }
    return [Finding(about, text) for about, text in said.items() if text]


def _noise(evidence: Evidence) -> str | None:
    """The deviation of the default configuration over seeds, and the best one's gain beside it."""
    again = [finalist.again for finalist in evidence.standings.finalists] if evidence.standings else evidence.ranking
    default = next((one for one in again if one.is_default), None)
    if default is None or default.accuracy.deviation is None:
        return None
    floor = (
        f"Noise floor: the default configuration's accuracy varies by {points(default.accuracy.deviation)} points "
        f"(standard deviation over {default.accuracy.n} seeds)."
    )
    best = again[0]
    if best.is_default:
        return f"{floor} Nothing that was trained as often beats it." if len(again) > 1 else floor
    if best.gain is None:
        return floor
    gain = f"The best one gains {points(best.gain.mean)} points on it ({_range(best.gain.low, best.gain.high)})"
    return f"{floor} {gain}{', which may be noise' if best.gain.is_noise else ''}."


def _importance(found: Importances) -> str | None:
    """Which hyperparameters matter by each method: those whose interval lies above an equal share."""
    said = list(found.missing)
    for method, shares in (("PED-ANOVA", found.ped_anova), ("fANOVA", found.fanova)):
        if shares and len(shares) > 1:
            said.append(_by_method(method, shares))
    return " ".join(said)


def _by_method(method: str, shares: dict[str, Importance]) -> str:
    even = 1 / len(shares)
    ranked = sorted(shares.items(), key=lambda item: item[1].share, reverse=True)
    clear = [f"{name} {importance.as_words()}" for name, importance in ranked if importance.low > even]
    if clear:
        return (
            f"By {method} {', '.join(clear)} {'matters' if len(clear) == 1 else 'matter'} "
            f"more than an equal share ({even:.2f})."
        )
    name, importance = ranked[0]
    return (
        f"By {method} no hyperparameter stands out: the first, {name}, has {importance.as_words()}, "
        f"and an equal share is {even:.2f}."
    )


def _edges(evidence: Evidence) -> str | None:
    """Where the best configuration lies at an edge of its range that could be moved."""
    finished = [trial for trial in evidence.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(finished) < FEWEST_FOR_EDGE or not evidence.ranking:
        return None
    best = evidence.standings.winner.again if evidence.standings else evidence.ranking[0]
    said = []
    for name, parameter in evidence.definition.space.items():
        if where := _beyond(name, parameter, best.params[name]):
            said.append(f"widen {name} {where}")
    return f"The best configuration lies at the edge of its range: {'; '.join(said)}." if said else None


def _beyond(name: str, parameter: Parameter, value: float) -> str | None:
    """In which direction a range should be widened: "above 20"."""
    if parameter.low is None or parameter.high is None:
        return None
    low, high = parameter.low, parameter.high
    whole = Hyperparameters.model_fields[name].annotation is int
    step = parameter.step or (1 if whole else EDGE * (high - low))
    slack = step / 2 if whole or parameter.step else step
    near_low = value <= low * (high / low) ** EDGE if parameter.log else value <= low + slack
    near_high = value >= high / (high / low) ** EDGE if parameter.log else value >= high - slack
    beyond_low = low - step if not parameter.log else low // 2 if whole else low / 2
    if near_high and _may_be(name, high + step):
        return f"above {short(high)}"
    if near_low and _may_be(name, beyond_low):
        return f"below {short(low)}"
    return None


def _may_be(name: str, value: float) -> bool:
    try:
        Hyperparameters.model_validate({name: value})
    except ValidationError:
        return False
    return True


def _diverged(trials: list[FrozenTrial]) -> str | None:
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    those = [trial for trial in finished if diverged(trial)]
    if not those:
        return None
    share = f"{count(len(those), 'trial')} of {len(finished)} ({len(those) / len(finished):.1%}) diverged"
    rates = [trial.params["learning_rate"] for trial in those if "learning_rate" in trial.params]
    if not rates:
        return f"{share}."
    if min(rates) == max(rates):
        return f"{share}, at a learning rate of {short(rates[0])}."
    return f"{share}, at learning rates from {short(min(rates))} to {short(max(rates))}."


def _best_trials(evidence: Evidence) -> list[FrozenTrial]:
    complete = [trial for trial in evidence.trials if trial.state == TrialState.COMPLETE and history_of(trial)]
    return sorted(complete, key=lambda trial: trial.value or 0.0, reverse=True)[:BEST]


def _overfitting(evidence: Evidence) -> str | None:
    """Of the best trials, those whose scored loss had risen at the end while the training loss fell on."""
    score_on, best = evidence.definition.score_on, _best_trials(evidence)
    rises = []
    for trial in best:
        history = history_of(trial)
        lowest, end = min(history, key=lambda epoch: epoch.loss), history[-1]
        if 0 < RISE * lowest.loss < end.loss < math.inf and end.train_loss < lowest.train_loss:
            rises.append(end.loss / lowest.loss - 1)
    if not rises:
        return None
    gap = fmean(history_of(trial)[-1].train_accuracy - history_of(trial)[-1].accuracy for trial in best)
    one = len(best) == 1
    subject = "The best trial" if one else f"{len(rises)} of the best {len(best)} trials"
    return (
        f"{subject} {'overfits: its' if len(rises) == 1 else 'overfit: their'} {score_on} loss ends {fmean(rises):.0%} "
        f"above its lowest while the training loss still falls. At the end the training accuracy (with dropout and "
        f"augmentation) is {points(abs(gap))} points {'above' if gap > 0 else 'below'} the {score_on} accuracy"
        f"{'' if one else f', on average over the best {len(best)}'}."
    )


def _improving(evidence: Evidence) -> str | None:
    """Whether the best trials still gained in their last epoch, by more than noise."""
    gains, best = [], _best_trials(evidence)
    for trial in best:
        whole = [epoch.accuracy for epoch in history_of(trial) if epoch.epoch == int(epoch.epoch)]
        if len(whole) >= 2:
            gains.append(whole[-1] - whole[-2])
    if len(gains) < 3:
        return None
    gain = estimate(gains)
    if gain.low is None or gain.high is None or gain.low <= 0:
        return None
    those = f"The best {len(gains)}" if len(gains) == len(best) else f"{len(gains)} of the best {len(best)}"
    return (
        f"{those} trials still improve in their last epoch, by {points(gain.mean)} points on average "
        f"({_range(gain.low, gain.high)}): more epochs may help."
    )


def _pruning(found: Pruning | None) -> str | None:
    if found is None:
        return None
    return (
        f"Pruning saved {found.saved:.0%} of the work: {found.trained:g} epochs were trained, "
        f"in the place of {found.whole} to every trial's end."
    )


def _audit(found: Audit | None) -> str | None:
    if found is None:
        return None
    if found.false is None:
        return (
            f"The audit of the pruner has too few trials for a rate: {found.audited}, and {FEWEST_AUDITED} are needed."
        )
    false = found.false
    return (
        f"Audit of the pruner: of {found.audited} pruned trials that were trained to the end all the same, "
        f"{false.hits} would have been among the study's best three ({percent(found.bar)} or more): a false-prune "
        f"rate of {false.hits / false.n:.0%} (95 % interval {false.low:.0%} to {false.high:.0%})."
    )


def _range(low: float, high: float) -> str:
    return f"95 % interval {points(low)} to {points(high)}"
