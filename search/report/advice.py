"""Recommendations from a study's numbers, each omitted where the numbers do not support it."""

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

UNIMPORTANT = 0.05  # upper end of the interval of an importance below which to fix the hyperparameter
IMPATIENT = 0.05  # lower end of the interval of the false-prune rate above which to change the pruner
DIVERGING = 0.05  # share of diverged trials from which to narrow the range of learning rates
CHEAPER = 0.8  # of the best configuration's time: the most that a recommended tie may take
MOST_SEEDS = 50  # per finalist that it is reasonable to suggest
MOST_TRIALS = 1000  # that it is reasonable to suggest for measuring importance
ANOTHER = "in a new study (`--name`)"  # space, defaults, sampler and pruner of a study cannot change


def on_tie(standings: Standings | None, finalists: str) -> str | None:
    """If the winner is the default, or statistically tied with it."""
    if standings is None or standings.winner is None or not standings.decided:
        return None
    best = standings.winner.retrained
    if best.is_default:
        return (
            "The default configuration won: the search found nothing better in this search space. Try wider ranges, "
            f"other hyperparameters or another network {ANOTHER}."
            if len(standings.finalists) > 1
            else None
        )
    gain = best.gain
    if gain is None or not gain.is_noise or gain.mean <= 0:
        return None
    seeds = math.ceil(best.accuracy.n * ((gain.high - gain.low) / 2 / gain.mean) ** 2)
    tied = (
        f"The winner is statistically tied with the default: it scored {points(gain.mean)} points higher "
        f"({wording.span(gain)})."
    )
    if seeds > MOST_SEEDS:
        return f"{tied} Even {MOST_SEEDS} seeds each would hardly separate them: use the cheaper one."
    more = seeds * len(standings.finalists) - standings.trained
    return (
        f"{tied} If this gain is real, about {seeds} seeds each would show it: `{finalists} --seeds {seeds}` "
        f"({count(more, 'more training run')})."
    )


def on_luck(
    definition: StudyDefinition, standings: Standings | None, ranking: list[Configuration], finalists: str
) -> str | None:
    """If the best of several single training runs was not retrained."""
    if standings or definition.seeds > 1 or len(ranking) < 2:
        return None
    return (
        f"The best accuracy is from a single training run, selected from {len(ranking)} and therefore partly luck: "
        f"`{finalists}` retrains the best three configurations and the default with fresh seeds."
    )


def on_cost(standings: Standings | None, ranking: list[Configuration]) -> str | None:
    """If a configuration that is tied with the best trains faster."""
    finalists = standings.finalists if standings else []
    named = [(wording.called(finalist), finalist.retrained) for finalist in finalists] or [
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
        f"{name[0].upper()}{name[1:]} is statistically tied with the best and takes {less} less time to train "
        f"({least.seconds:.1f} s instead of {best.seconds:.1f} s): use it where time matters."
    )


def on_unimportant(definition: StudyDefinition, found: Importances | None) -> str | None:
    """If each method finds hyperparameters unimportant."""
    if found is None or found.fanova is None:
        return None
    methods = found.methods.values()
    # A hyperparameter in the conditions of others cannot be removed from the space.
    needed = {other for tables in definition.space.values() for table in tables for other in table.when}
    names = [name for name in found.fanova if all(shares[name].high < UNIMPORTANT for shares in methods)]
    names = [name for name in names if name not in needed]
    if not names or len(names) == len(found.fanova):
        return None
    explain, them = ("explains", "it") if len(names) == 1 else ("explain", "them")
    return (
        f"{wording.listed(names)} {explain} almost none of the accuracy (importance below {UNIMPORTANT:g} by each "
        f"method): {ANOTHER}, set {them} in `[defaults]` only, to search the others more densely."
    )


def on_patience(definition: StudyDefinition, found: Audit | None) -> str | None:
    """If the audit shows that the pruner stops good trials."""
    if found is None or found.false is None or found.false.low <= IMPATIENT:
        return None
    # No pruner loses fewer of the best trials than freeze (docs/log.md).
    option = _pruner_option(definition, "none" if definition.pruner == "freeze" else "freeze")
    return (
        f"The pruner stopped good trials: {found.false.hits} of {found.false.n} audited trials would have been among "
        f"the best. Try {option} {ANOTHER}."
    )


def _pruner_option(definition: StudyDefinition, pruner: PrunerName) -> str:
    # An audit without a pruner is refused.
    return f"`--pruner {pruner}{' --audit 0' if definition.audit and pruner == 'none' else ''}`"


def on_learning_rates(definition: StudyDefinition, trials: list[FrozenTrial]) -> str | None:
    """If trials diverge only at learning rates above those of the best trials."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    lost = [trial.params["learning_rate"] for trial in finished if diverged(trial) and "learning_rate" in trial.params]
    best = [trial.params["learning_rate"] for trial in best_trials(trials) if "learning_rate" in trial.params]
    if not best or len(lost) < DIVERGING * len(finished) or not lost or max(best) >= min(lost):
        return None
    bound = min(lost)
    if any(min(table.ends()) >= bound for table in definition.space.get("learning_rate", ())):
        return None  # that table would become empty
    given = [definition.defaults.learning_rate, *(start.get("learning_rate", 0) for start in definition.start)]
    others = ", and move defaults and starting points into it" if max(given) >= bound else ""
    return (
        f"Trials diverged at learning rates of {short(bound)} and above; the best trials use at most "
        f"{short(max(best))}: {ANOTHER}, end the range below {short(bound)}{others}."
    )


def on_more_trials(definition: StudyDefinition, trials: list[FrozenTrial], found: Importances | None) -> str | None:
    """If too few trials are complete to measure importance."""
    finished = sum(trial.state in FINISHED for trial in trials)
    over = all(trial.state.is_finished() for trial in trials)  # otherwise more may still complete
    if found is None or not found.missing or not finished or not over or found.complete >= FEWEST_COMPLETE:
        return None
    needed = (
        f"{count(found.complete, 'complete trial')} {'is' if found.complete == 1 else 'are'} too few to measure "
        f"importance for the final accuracy: {FEWEST_COMPLETE} are needed."
    )
    ways = ", or ".join(_ways_to_more(definition, found.complete, finished))
    return f"{needed} {ways[0].upper()}{ways[1:]}." if ways else None


def _ways_to_more(definition: StudyDefinition, complete: int, finished: int) -> list[str]:
    wanted, ways = _trials_for(FEWEST_COMPLETE, complete, finished), []
    most = len(space.grid(definition)) if definition.sampler == "grid" else MOST_TRIALS
    if wanted is not None and finished < wanted <= most:
        rate = f"at this study's rate ({complete} of {finished} complete) that takes about {wanted} trials: "
        command = f"repeat its `run` command with `--trials {wanted}`"
        ways.append(f"{rate if complete < finished else ''}{command}")
    if definition.pruner != "none" and finished > complete and most >= FEWEST_COMPLETE:
        ways.append(f"search with {_pruner_option(definition, 'none')} {ANOTHER}")
    if definition.sampler == "grid" and not ways:
        ways.append(f"search more values {ANOTHER}")
    return ways


def _trials_for(wanted: int, complete: int, finished: int) -> int | None:
    """Finished trials needed for `wanted` complete ones, in tens if extrapolated; None if none is complete."""
    if not complete:
        return None
    return wanted if complete == finished else 10 * math.ceil(wanted * finished / complete / 10)


FEWEST = 10  # finished trials below which a best value at an edge says nothing about the range
EDGE = 0.02  # of a range's width


def on_edges(definition: StudyDefinition, trials: list[FrozenTrial], best: Configuration | None) -> str | None:
    """If the best configuration lies at the edge of a range."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    if len(finished) < FEWEST or best is None:
        return None
    changes = []
    for name, value in best.params.items():
        parameter = applying(definition.space, name, best.params)
        if parameter and (where := _beyond(definition, name, parameter, value)):
            changes.append(f"widen {name} {where}{f' where {parameter.condition}' if parameter.when else ''}")
    edge = "The best configuration lies at the edge of the search space"
    return f"{edge}: {ANOTHER}, {'; '.join(changes)}." if changes else None


def _beyond(definition: StudyDefinition, name: str, parameter: Parameter, value: float) -> str | None:
    """Direction in which to widen a range: "above 20"."""
    if parameter.choices is not None:
        return _beyond_choices(definition, name, parameter, value)
    low, high = parameter.range
    whole = parameter.whole
    step = parameter.step or (1 if whole else EDGE * (high - low))
    slack = step / 2 if whole or parameter.step else step
    near_low = value <= low * (high / low) ** EDGE if parameter.log else value <= low + slack
    near_high = value >= high / (high / low) ** EDGE if parameter.log else value >= high - slack
    beyond_low = low - step if not parameter.log else low // 2 if whole else low / 2
    if near_high and _is_valid(definition, name, parameter, high=high + step):
        return f"above {short(high)}"
    if near_low and _is_valid(definition, name, parameter, low=beyond_low):
        return f"below {short(low)}"
    return None


def _beyond_choices(definition: StudyDefinition, name: str, parameter: Parameter, value: float) -> str | None:
    """Direction in which to extend numeric choices, by the distance of the last two at that end."""
    numbers = sorted(parameter.values()) if parameter.ordered else []
    if len(numbers) < 2:
        return None
    above, below = 2 * numbers[-1] - numbers[-2], 2 * numbers[0] - numbers[1]
    if value == numbers[-1] and _is_valid(definition, name, parameter, choices=[*numbers, above]):
        return f"above {short(numbers[-1])}"
    if value == numbers[0] and _is_valid(definition, name, parameter, choices=[below, *numbers]):
        return f"below {short(numbers[0])}"
    return None


def _is_valid(definition: StudyDefinition, name: str, parameter: Parameter, **changes: object) -> bool:
    """Whether a new study may have this table with the changes."""
    widened = parameter.model_copy(update=changes)
    if definition.is_own and name not in TRAINING and min(widened.ends()) <= 0:
        return False  # a user's own network does not declare its bounds
    tables = [widened if table is parameter else table for table in definition.space[name]]
    changed = definition.model_copy(update={"space": definition.space | {name: tables}})
    try:
        StudyDefinition.model_validate(changed.model_dump())
        check_batch_size(int(min(widened.ends())) if name == "batch_size" else 2)
    except (ValidationError, UsageError):
        return False
    return True
