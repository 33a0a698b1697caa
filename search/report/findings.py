"""Sentences about a study, each omitted where the numbers do not support it."""

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

NEXT = ("edge", "improving", "tie", "luck", "cheaper", "unimportant", "patience", "rates", "more")  # recommendations


@dataclass(frozen=True)
class Finding:
    """One or two sentences and their topic."""

    about: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """The numbers behind the findings. finalists: the command that trains the study's finalists."""

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
    """All findings that the numbers support."""
    ranking, standings = evidence.ranking, evidence.standings
    configurations = [finalist.retrained for finalist in standings.finalists] if standings else ranking
    texts = {
        "write-up": verdict(evidence.comparison) if evidence.comparison else None,
        "ranking": wording.ranked(evidence.ranking) if evidence.definition.seeds > 1 else None,
        "noise": _noise(configurations),
        "importance": _importance(evidence.importances) if evidence.importances else None,
        "early": _early(evidence.importances.early) if evidence.importances and evidence.importances.early else None,
        "diverged": _diverged(evidence.trials),
        "pruning": _pruning(evidence.pruning, wording.ended_early(evidence.definition, evidence.trials)),
        "audit": _audit(evidence.audit),
        "overfitting": overfitting(evidence.definition.score_on, evidence.trials),
        "edge": advice.on_edges(
            evidence.definition, evidence.trials, next((one for one in configurations[:1] if one.whole), None)
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
    return [Finding(about, text) for about, text in texts.items() if text]


def _noise(configurations: list[Configuration]) -> str | None:
    default = next((one for one in configurations if one.is_default), None)
    if default is None or default.accuracy.deviation is None:
        return None
    floor = (
        f"Noise floor: the default configuration's accuracy varies by {points(default.accuracy.deviation)} points "
        f"(standard deviation over {default.accuracy.n} seeds)."
    )
    best = configurations[0]
    if not best.whole:
        return floor
    if best.is_default:
        beaten = " No other configuration trained with as many seeds scored higher." if len(configurations) > 1 else ""
        return f"{floor}{beaten}"
    if best.gain is None:
        return floor
    gain = f"The best configuration scores {points(best.gain.mean)} points higher ({wording.span(best.gain)})"
    return f"{floor} {gain}{', which may be noise' if best.gain.is_noise else ''}."


def _importance(found: Importances) -> str | None:
    return " ".join([*found.missing, *_by_methods(found)])


def _early(found: Early) -> str:
    number = found.importances.finished
    reached = (
        f"all {number} trials reached"
        if not found.lost
        else f"{number} trials reached; {found.lost} more diverged before"
    )
    left_out = " `epochs` is left out, as it has no effect before training ends." if found.without_epochs else ""
    return (
        f"Importance for the accuracy after {found.when}, which {reached}. What helps early may not help in the end. "
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
            f"{method}: {', '.join(clear)} {'is' if len(clear) == 1 else 'are'} more important than an equal share "
            f"({even:.2f})."
        )
    name, importance = ranked[0]
    return (
        f"{method}: no hyperparameter stands out. The first, {name}, has {importance.as_words()}; an equal share is "
        f"{even:.2f}."
    )


def _diverged(trials: list[FrozenTrial]) -> str | None:
    finished = [trial for trial in trials if trial.state in FINISHED]
    lost = [trial for trial in finished if diverged(trial)]
    if not lost:
        return None
    share = f"{len(lost)} of {count(len(finished), 'trial')} ({percent(len(lost) / len(finished), 1)}) diverged"
    rates = [trial.params["learning_rate"] for trial in lost if "learning_rate" in trial.params]
    if not rates:
        return f"{share}."
    if min(rates) == max(rates):
        return f"{share}, at a learning rate of {short(rates[0])}."
    return f"{share}, at learning rates from {short(min(rates))} to {short(max(rates))}."


def _pruning(found: Pruning | None, untrained: str | None) -> str | None:
    if found is None:
        return None
    others = (
        f" (without {found.others:g} epochs of audits and of diverged, failed and unfinished trials)"
        if found.others
        else ""
    )
    saved = (
        f"Pruning saved {percent(found.saved, 0)} of the search's epochs: {found.trained:g} epochs were trained{others}"
        f" instead of the {found.planned} that running every trial to its end would have taken."
    )
    return f"{saved} {untrained}" if untrained else saved


def _audit(found: Audit | None) -> str | None:
    if found is None:
        return None
    if found.false is None:
        return (
            f"Pruner audit: too few trials for a false-prune rate, {found.audited} audited and {found.complete} "
            f"complete ({FEWEST_AUDITED} and {CONTENDERS} are needed)."
        )
    false = found.false
    return (
        f"Pruner audit: of {found.audited} pruned trials that were trained to the end anyway, {false.hits} would have "
        f"been among the study's best three ({percent(found.bar)} or more), a false-prune rate of "
        f"{percent(false.hits / false.n, 0)} (95 % interval {percent(false.low, 0)} to {percent(false.high, 0)})."
    )
