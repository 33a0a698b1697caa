"""What to try next, by a study's numbers: a sentence each, none where they do not carry it."""

import math

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from fmnist.errors import UsageError
from fmnist.hyperparameters import TRAINING, check_batch_size
from search.choices import PrunerName
from search.formatting import count, percent, points, short
from search.report.history import Audit, best_trials
from search.report.importance import FEWEST_COMPLETE, Importances
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


def on_tie(standings: Standings | None, finalists: str) -> str | None:
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


def on_luck(
    definition: StudyDefinition, standings: Standings | None, ranking: list[Configuration], finalists: str
) -> str | None:
    """To train the best of several single trainings again."""
    if standings or definition.seeds > 1 or len(ranking) < 2:
        return None
    return (
        f"The best is one training, chosen among {len(ranking)}, and so partly luck: `{finalists}` trains "
        "the best three and the default again with fresh seeds."
    )


def on_cost(standings: Standings | None, ranking: list[Configuration]) -> str | None:
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


def on_unimportant(definition: StudyDefinition, found: Importances | None) -> str | None:
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


def on_patience(definition: StudyDefinition, found: Audit | None) -> str | None:
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


def on_learning_rates(definition: StudyDefinition, trials: list[FrozenTrial]) -> str | None:
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


def on_more_trials(definition: StudyDefinition, trials: list[FrozenTrial], found: Importances | None) -> str | None:
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


def on_edges(definition: StudyDefinition, trials: list[FrozenTrial], best: Configuration | None) -> str | None:
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
