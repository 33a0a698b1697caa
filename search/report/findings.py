"""Sentences about a study's numbers: what they say, and what to try next; none where they do not carry it."""

import math
from dataclasses import dataclass

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from fmnist.errors import UsageError
from fmnist.hyperparameters import TRAINING, check_batch_size
from search.choices import PrunerName
from search.formatting import count, percent, points, short
from search.report.history import CONTENDERS, FEWEST_AUDITED, Audit, Pruning, best_trials, improving, overfitting
from search.report.importance import FEWEST_COMPLETE, Early, Importance, Importances
from search.report.writeup import Comparison, verdict
from search.results import wording
from search.results.finalists import Standings
from search.results.ranking import Configuration, diverged
from search.study import space
from search.study.definition import StudyDefinition
from search.study.parameters import Parameter, applying
from search.study.record import FINISHED

UNIMPORTANT = 0.05  # of 1: what the interval of an importance must stay below for the hyperparameter to be fixed
IMPATIENT = 0.05  # what the interval of the false-prune rate must lie above for the pruner to be blamed
DIVERGING = 0.05  # share of trials that diverge from which a range is worth cutting
CHEAPER = 0.8  # of the best one's time: a tie that takes more is not worth a word
MOST_SEEDS = 50  # of a training that anyone would make
MOST_TRIALS = 1000  # of a study that anyone would run to learn what matters
ANOTHER = "in a study of another `--name`"  # space, defaults, sampler and pruner of an existing one cannot change


def advice_on_tie(standings: Standings | None, finalists: str) -> str | None:
    """What to do where the winner of the finalists is the default, or cannot be told from it."""
    if standings is None or standings.winner is None or not standings.decided:
        return None
    best = standings.winner.again
    if best.is_default:
        return (
            "The default itself won: within these ranges the search found nothing better. Try wider ranges, other "
            f"hyperparameters or another network, {ANOTHER}."
            if len(standings.finalists) > 1
            else None
        )
    gain = best.gain
    if gain is None or not gain.is_noise or gain.mean <= 0:
        return None
    seeds = math.ceil(best.accuracy.n * ((gain.high - gain.low) / 2 / gain.mean) ** 2)
    told = f"The winner cannot be told from the default: it gains {points(gain.mean)} points ({wording.span(gain)})."
    if seeds > MOST_SEEDS:
        return f"{told} Even {MOST_SEEDS} seeds each would hardly tell them apart: take the one that costs less."
    more = seeds * len(standings.finalists) - standings.trained
    return (
        f"{told} If the gain is what it seems, some {seeds} seeds each would tell: `{finalists} --seeds {seeds}`, "
        f"which trains {count(more, 'network')} more."
    )


def advice_on_luck(
    definition: StudyDefinition, standings: Standings | None, ranking: list[Configuration], finalists: str
) -> str | None:
    """To train the best of several single trainings again."""
    if standings or definition.seeds > 1 or len(ranking) < 2:
        return None
    return (
        f"The best is one training, chosen among {len(ranking)}, and so partly luck: `{finalists}` trains "
        "the best three and the default again with fresh seeds."
    )


def advice_on_cost(standings: Standings | None, ranking: list[Configuration]) -> str | None:
    """The one that takes the least time of those that cannot be told from the best."""
    finalists = standings.finalists if standings else []
    named = [(wording.called(finalist), finalist.again) for finalist in finalists] or [
        (one.label, one) for one in ranking
    ]
    names = [name for name, one in named if one.whole]
    found = [one for _, one in named if one.whole]
    if not found or not found[0].seconds:
        return None
    best, *others = found
    ties = [other for other in others if other.behind and other.behind.is_noise]
    least = min(ties, key=lambda other: other.seconds, default=best)
    if least.seconds > CHEAPER * best.seconds:
        return None
    name, less = names[found.index(least)], percent(1 - least.seconds / best.seconds, 0)
    return (
        f"{name[0].upper()}{name[1:]} cannot be told from the best and takes {less} less time to "
        f"train ({least.seconds:.1f} s in the place of {best.seconds:.1f} s): take it where time counts."
    )


def advice_on_unimportant(definition: StudyDefinition, found: Importances | None) -> str | None:
    """Hyperparameters that each method finds not to matter."""
    if found is None or found.fanova is None:
        return None
    methods = found.methods.values()
    # Without one that others depend on, their conditions would be refused.
    needed = {other for tables in definition.space.values() for table in tables for other in table.when}
    names = [name for name in found.fanova if all(shares[name].high < UNIMPORTANT for shares in methods)]
    names = [name for name in names if name not in needed]
    if not names or len(names) == len(found.fanova):
        return None
    explain, them = ("explains", "it") if len(names) == 1 else ("explain", "them")
    return (
        f"{wording.listed(names)} {explain} next to nothing of the accuracy (importance below {UNIMPORTANT:g} of 1 by "
        f"each method): {ANOTHER}, set {them} in `[defaults]` only, and what is left is searched more densely."
    )


def advice_on_patience(definition: StudyDefinition, found: Audit | None) -> str | None:
    """A pruner that waits longer, if the audit says that this one ends good trials."""
    if found is None or found.false is None or found.false.low <= IMPATIENT:
        return None
    # By docs/log.md no pruner loses fewer of the best trials than freeze.
    instead = _with_pruner(definition, "none" if definition.pruner == "freeze" else "freeze")
    return (
        f"The pruner ended good trials: {found.false.hits} of {found.false.n} that were trained on all the same came "
        f"to be among the best. Try {instead} {ANOTHER}."
    )


def _with_pruner(definition: StudyDefinition, pruner: PrunerName) -> str:
    """The options; an audit needs a pruner, and is refused without one."""
    return f"`--pruner {pruner}{' --audit 0' if definition.audit and pruner == 'none' else ''}`"


def advice_on_learning_rates(definition: StudyDefinition, trials: list[FrozenTrial]) -> str | None:
    """Where to end the range of learning rates, if trials diverge only beyond those of the best."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    lost = [trial.params["learning_rate"] for trial in finished if diverged(trial) and "learning_rate" in trial.params]
    best = [trial.params["learning_rate"] for trial in best_trials(trials) if "learning_rate" in trial.params]
    if not best or len(lost) < DIVERGING * len(finished) or not lost or max(best) >= min(lost):
        return None
    bound = min(lost)
    if any(min(table.ends()) >= bound for table in definition.space.get("learning_rate", ())):
        return None  # nothing of that table would be left
    given = [definition.defaults.learning_rate, *(start.get("learning_rate", 0) for start in definition.start)]
    too = ", with defaults and starting points within it" if max(given) >= bound else ""
    return (
        f"Trials diverged at learning rates from {short(bound)} on, and the best have {short(max(best))} at the "
        f"most: {ANOTHER}, end the range below {short(bound)}{too}."
    )


def advice_on_more_trials(
    definition: StudyDefinition, trials: list[FrozenTrial], found: Importances | None
) -> str | None:
    """How to come to enough complete trials to say what matters, by the share of this study's that are complete."""
    finished = sum(trial.state in FINISHED for trial in trials)
    over = all(trial.state.is_finished() for trial in trials)  # else it may come to more by itself
    if found is None or not found.missing or not finished or not over or found.complete >= FEWEST_COMPLETE:
        return None
    told = (
        f"{count(found.complete, 'complete trial')} {'is' if found.complete == 1 else 'are'} too few to say what "
        f"matters in the end: {FEWEST_COMPLETE} are needed."
    )
    ways = ", or ".join(_ways_to_more(definition, found.complete, finished))
    return f"{told} {ways[0].upper()}{ways[1:]}." if ways else None


def _ways_to_more(definition: StudyDefinition, complete: int, finished: int) -> list[str]:
    """None where nearly all trials diverge."""
    wanted, ways = _trials_for(FEWEST_COMPLETE, complete, finished), []
    most = len(space.grid(definition)) if definition.sampler == "grid" else MOST_TRIALS
    if wanted is not None and finished < wanted <= most:
        rate = f"at this study's rate, {complete} of {finished}, that takes about {wanted} trials: "
        again = f"repeat its `fmnist-search run` with `--trials {wanted}`"
        ways.append(f"{rate if complete < finished else ''}{again}")
    if definition.pruner != "none" and finished > complete and most >= FEWEST_COMPLETE:
        ways.append(f"search with {_with_pruner(definition, 'none')} {ANOTHER}")
    if definition.sampler == "grid" and not ways:
        ways.append(f"search more values {ANOTHER}")
    return ways


def _trials_for(wanted: int, complete: int, finished: int) -> int | None:
    """How many finished trials have so many complete ones, in tens where that is a guess; None if none is complete."""
    if not complete:
        return None
    return wanted if complete == finished else 10 * math.ceil(wanted * finished / complete / 10)


FEWEST = 10  # finished trials below which a best value at an edge tells nothing of the range
EDGE = 0.02  # of a range's width


def advice_on_edges(definition: StudyDefinition, trials: list[FrozenTrial], best: Configuration | None) -> str | None:
    """Which ranges to widen, if the best configuration lies at an edge of them."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    if len(finished) < FEWEST or best is None:
        return None
    said = []
    for name, value in best.params.items():
        parameter = applying(definition.space, name, best.params)
        if parameter and (where := _beyond(definition, name, parameter, value)):
            said.append(f"widen {name} {where}{f' where {parameter.condition}' if parameter.when else ''}")
    edge = "The best configuration lies at the edge of its range"
    return f"{edge}: {ANOTHER}, {'; '.join(said)}." if said else None


def _beyond(definition: StudyDefinition, name: str, parameter: Parameter, value: float) -> str | None:
    """In which direction a range should be widened: "above 20"."""
    if parameter.choices is not None:
        return _beyond_choices(definition, name, parameter, value)
    low, high = parameter.range
    whole = parameter.whole
    step = parameter.step or (1 if whole else EDGE * (high - low))
    slack = step / 2 if whole or parameter.step else step
    near_low = value <= low * (high / low) ** EDGE if parameter.log else value <= low + slack
    near_high = value >= high / (high / low) ** EDGE if parameter.log else value >= high - slack
    beyond_low = low - step if not parameter.log else low // 2 if whole else low / 2
    if near_high and _may_be(definition, name, parameter, high=high + step):
        return f"above {short(high)}"
    if near_low and _may_be(definition, name, parameter, low=beyond_low):
        return f"below {short(low)}"
    return None


def _beyond_choices(definition: StudyDefinition, name: str, parameter: Parameter, value: float) -> str | None:
    """The same of choices that are numbers: they may go on as far as they are apart at that end."""
    numbers = sorted(parameter.values()) if parameter.ordered else []
    if len(numbers) < 2:
        return None
    above, below = 2 * numbers[-1] - numbers[-2], 2 * numbers[0] - numbers[1]
    if value == numbers[-1] and _may_be(definition, name, parameter, choices=[*numbers, above]):
        return f"above {short(numbers[-1])}"
    if value == numbers[0] and _may_be(definition, name, parameter, choices=[below, *numbers]):
        return f"below {short(numbers[0])}"
    return None


def _may_be(definition: StudyDefinition, name: str, parameter: Parameter, **changes: object) -> bool:
    """Whether a new study may have that table with the changes."""
    widened = parameter.model_copy(update=changes)
    if definition.is_own and name not in TRAINING and min(widened.ends()) <= 0:
        return False  # a network of the user's own says nothing of its bounds
    tables = [widened if table is parameter else table for table in definition.space[name]]
    changed = definition.model_copy(update={"space": definition.space | {name: tables}})
    try:
        StudyDefinition.model_validate(changed.model_dump())
        check_batch_size(int(min(widened.ends())) if name == "batch_size" else 2)
    except (ValidationError, UsageError):
        return False
    return True


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
        "edge": advice_on_edges(
            evidence.definition, evidence.trials, next((one for one in again[:1] if one.whole), None)
        ),
        "improving": improving(evidence.trials),
        "tie": advice_on_tie(standings, evidence.finalists),
        "luck": advice_on_luck(evidence.definition, standings, ranking, evidence.finalists),
        "cheaper": advice_on_cost(standings, ranking),
        "unimportant": advice_on_unimportant(evidence.definition, evidence.importances),
        "patience": advice_on_patience(evidence.definition, evidence.audit),
        "rates": advice_on_learning_rates(evidence.definition, evidence.trials),
        "more": advice_on_more_trials(evidence.definition, evidence.trials, evidence.importances),
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
