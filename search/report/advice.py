"""What to try next: a sentence where the numbers carry it. Edges of ranges and curves that still rise are elsewhere."""

import math

from optuna.trial import FrozenTrial

from search.formatting import count, percent, points, short
from search.report.curves import best_trials
from search.report.importance import FEWEST_COMPLETE, Importances
from search.report.pruning import Audit
from search.results import wording
from search.results.finalists import Standings
from search.results.ranking import Configuration, diverged
from search.study.definition import StudyDefinition
from search.study.store import FINISHED

UNIMPORTANT = 0.05  # of 1: what the interval of an importance must stay below for the hyperparameter to be fixed
IMPATIENT = 0.05  # what the interval of the false-prune rate must lie above for the pruner to be blamed
DIVERGING = 0.05  # share of trials that diverge from which a range is worth cutting
CHEAPER = 0.8  # of the best one's time: a tie that takes more is not worth a word
MOST_SEEDS = 50  # of a training that anyone would make


def advice_on_tie(standings: Standings | None) -> str | None:
    """What to do where the winner of the finalists is the default, or cannot be told from it."""
    if standings is None or standings.winner is None or not standings.decided:
        return None
    best = standings.winner.again
    if best.is_default:
        return (
            "The default itself won: within these ranges the search found nothing better. Try wider ranges, other "
            "hyperparameters or another network."
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
    return (
        f"{told} If the gain is what it seems, some {seeds} seeds each would tell: "
        f"`fmnist-search finalists {standings.study} --seeds {seeds}`."
    )


def advice_on_luck(
    definition: StudyDefinition, standings: Standings | None, ranking: list[Configuration]
) -> str | None:
    """To train the best of several single trainings again."""
    if standings or definition.seeds > 1 or len(ranking) < 2:
        return None
    return (
        f"The best is one training, chosen among {len(ranking)}, and so partly luck: `fmnist-search finalists` trains "
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


def advice_on_unimportant(found: Importances | None) -> str | None:
    """Hyperparameters that each method finds not to matter."""
    if found is None or found.fanova is None:
        return None
    methods = [shares for shares in (found.fanova, found.ped_anova) if shares]
    names = [name for name in found.fanova if all(shares[name].high < UNIMPORTANT for shares in methods)]
    if not names or len(names) == len(found.fanova):
        return None
    explain, them = ("explains", "it") if len(names) == 1 else ("explain", "them")
    return (
        f"{wording.listed(names)} {explain} next to nothing of the accuracy (importance below {UNIMPORTANT:g} of 1 by "
        f"each method): fix {them}, and what is left is searched more densely."
    )


def advice_on_patience(definition: StudyDefinition, found: Audit | None) -> str | None:
    """A pruner that waits longer, if the audit says that this one ends good trials."""
    if found is None or found.false is None or found.false.low <= IMPATIENT:
        return None
    instead = "`--pruner none`" if definition.pruner == "median" else "`--pruner median`"
    return (
        f"The pruner ended good trials: {found.false.hits} of {found.false.n} that were trained on all the same came "
        f"to be among the best. Try a study of another `--name` with {instead}."
    )


def advice_on_learning_rates(trials: list[FrozenTrial]) -> str | None:
    """Where to end the range of learning rates, if trials diverge only beyond those of the best."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    lost = [trial.params["learning_rate"] for trial in finished if diverged(trial) and "learning_rate" in trial.params]
    best = [trial.params["learning_rate"] for trial in best_trials(trials) if "learning_rate" in trial.params]
    if not best or len(lost) < DIVERGING * len(finished) or not lost or max(best) >= min(lost):
        return None
    return (
        f"Trials diverged at learning rates from {short(min(lost))} on, and the best have {short(max(best))} at the "
        f"most: end the range below {short(min(lost))}."
    )


def advice_on_more_trials(found: Importances | None) -> str | None:
    """More trials, where they are too few to say what matters."""
    if found is None or not found.finished or found.complete >= FEWEST_COMPLETE:
        return None
    return (
        f"{count(found.complete, 'complete trial')} {'is' if found.complete == 1 else 'are'} too few to say what "
        f"matters: {FEWEST_COMPLETE} are needed. `fmnist-search run` with a larger `--trials` adds the difference."
    )
