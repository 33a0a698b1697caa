"""Sentences about a study's numbers, none where they do not carry it."""

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from search.formatting import count, percent, points, short
from search.report import advice
from search.report.history import CONTENDERS, FEWEST_AUDITED, Audit, Pruning, improving, overfitting
from search.report.importance import Early, Importance, Importances
from search.report.writeup import Comparison, verdict
from search.results import wording
from search.results.finalists import Standings
from search.results.ranking import Configuration, diverged
from search.study.definition import StudyDefinition
from search.study.record import FINISHED

NEXT = ("edge", "improving", "tie", "luck", "cheaper", "unimportant", "patience", "rates", "more")  # what to try


@dataclass(frozen=True)
class Finding:
    """One sentence or two, and what they are about."""

    about: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """The numbers that findings are drawn from. finalists: the command that trains the study's."""

    definition: StudyDefinition
    trials: list[FrozenTrial]
    importances: Importances | None
    ranking: list[Configuration]
    standings: Standings | None
    pruning: Pruning | None
    audit: Audit | None
    comparison: Comparison | None
    finalists: str


def findings(evidence: Evidence) -> list[Finding]:
    """All that can be said of a study."""
    ranking, standings = evidence.ranking, evidence.standings
    again = [finalist.again for finalist in standings.finalists] if standings else ranking
    said = {
        "write-up": verdict(evidence.comparison) if evidence.comparison else None,
        "ranking": wording.ranked(evidence.ranking) if evidence.definition.seeds > 1 else None,
        "noise": _noise(again),
        "importance": _importance(evidence.importances) if evidence.importances else None,
        "early": _early(evidence.importances.early) if evidence.importances and evidence.importances.early else None,
        "diverged": _diverged(evidence.trials),
        "pruning": _pruning(evidence.pruning, wording.ended_early(evidence.definition, evidence.trials)),
        "audit": _audit(evidence.audit),
        "overfitting": overfitting(evidence.definition.score_on, evidence.trials),
        "edge": advice.on_edges(
            evidence.definition, evidence.trials, next((one for one in again[:1] if one.whole), None)
        ),
        "improving": improving(evidence.trials),
        "tie": advice.on_tie(standings, evidence.finalists),
        "luck": advice.on_luck(evidence.definition, standings, ranking, evidence.finalists),
        "cheaper": advice.on_cost(standings, ranking),
        "unimportant": advice.on_unimportant(evidence.definition, evidence.importances),
        "patience": advice.on_patience(evidence.definition, evidence.audit),
        "rates": advice.on_learning_rates(evidence.definition, evidence.trials),
        "more": advice.on_more_trials(evidence.definition, evidence.trials, evidence.importances),
    }
    return [Finding(about, text) for about, text in said.items() if text]


def _noise(again: list[Configuration]) -> str | None:
    """The deviation of the default configuration over seeds, and the best one's gain beside it."""
    default = next((one for one in again if one.is_default), None)
    if default is None or default.accuracy.deviation is None:
        return None
    floor = (
        f"Noise floor: the default configuration's accuracy varies by {points(default.accuracy.deviation)} points "
        f"(standard deviation over {default.accuracy.n} seeds)."
    )
    best = again[0]
    if not best.whole:
        return floor
    if best.is_default:
        return f"{floor} Nothing that was trained as often beats it." if len(again) > 1 else floor
    if best.gain is None:
        return floor
    gain = f"The best one gains {points(best.gain.mean)} points on it ({wording.span(best.gain)})"
    return f"{floor} {gain}{', which may be noise' if best.gain.is_noise else ''}."


def _importance(found: Importances) -> str | None:
    """Which hyperparameters matter by each method: those whose interval lies above an equal share."""
    return " ".join([*found.missing, *_by_methods(found)])


def _early(found: Early) -> str:
    """What that importance is of, and which hyperparameters have it."""
    number = found.importances.finished
    whose = (
        f"all {number} trials reached"
        if not found.lost
        else f"{number} trials reached; {found.lost} more diverged before"
    )
    left_out = " `epochs` is left out: it changes nothing before a training ends." if found.without_epochs else ""
    return (
        f"Importance for the accuracy after {found.when}, which {whose}: what helps early need not help in the end. "
        f"{' '.join([*found.importances.missing, *_by_methods(found.importances)])}{left_out}"
    )


def _by_methods(found: Importances) -> list[str]:
    return [_by_method(method, shares) for method, shares in found.methods.items() if len(shares) > 1]


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


def _diverged(trials: list[FrozenTrial]) -> str | None:
    finished = [trial for trial in trials if trial.state in FINISHED]
    those = [trial for trial in finished if diverged(trial)]
    if not those:
        return None
    share = f"{count(len(those), 'trial')} of {len(finished)} ({percent(len(those) / len(finished), 1)}) diverged"
    rates = [trial.params["learning_rate"] for trial in those if "learning_rate" in trial.params]
    if not rates:
        return f"{share}."
    if min(rates) == max(rates):
        return f"{share}, at a learning rate of {short(rates[0])}."
    return f"{share}, at learning rates from {short(min(rates))} to {short(max(rates))}."


def _pruning(found: Pruning | None, untrained: str | None) -> str | None:
    if found is None:
        return None
    others = (
        f" ({found.others:g} more by audits and by trials that diverged, failed or still run)" if found.others else ""
    )
    saved = (
        f"Pruning saved {percent(found.saved, 0)} of the search's work: {found.trained:g} epochs were trained{others}, "
        f"in the place of {found.whole} to every trial's end."
    )
    return f"{saved} {untrained}" if untrained else saved


def _audit(found: Audit | None) -> str | None:
    if found is None:
        return None
    if found.false is None:
        return (
            f"The audit of the pruner has too few trials for a rate: {found.audited} audited and {found.complete} "
            f"completed; {FEWEST_AUDITED} and {CONTENDERS} are needed."
        )
    false = found.false
    return (
        f"Audit of the pruner: of {found.audited} pruned trials that were trained to the end all the same, "
        f"{false.hits} would have been among the study's best three ({percent(found.bar)} or more): a false-prune rate "
        f"of {percent(false.hits / false.n, 0)} (95 % interval {percent(false.low, 0)} to {percent(false.high, 0)})."
    )
