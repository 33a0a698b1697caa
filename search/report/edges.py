"""A best value at the edge of its range: a better one may lie beyond."""

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from fmnist.hyperparameters import Hyperparameters
from search.formatting import short
from search.results.ranking import Configuration
from search.study.definition import Parameter, StudyDefinition
from search.study.space import is_whole
from search.study.store import FINISHED

FEWEST = 10  # finished trials below which a best value at an edge tells nothing of the range
EDGE = 0.02  # of a range's width


def advice_on_edges(definition: StudyDefinition, trials: list[FrozenTrial], best: Configuration | None) -> str | None:
    """Which ranges to widen, if the best configuration lies at an edge of them."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    if len(finished) < FEWEST or best is None:
        return None
    said = []
    for name, parameter in definition.space.items():
        if where := _beyond(name, parameter, best.params[name]):
            said.append(f"widen {name} {where}")
    return f"The best configuration lies at the edge of its range: {'; '.join(said)}." if said else None


def _beyond(name: str, parameter: Parameter, value: float) -> str | None:
    """In which direction a range should be widened: "above 20"."""
    if parameter.choices is not None:
        return _beyond_choices(name, parameter.choices, value)
    assert parameter.low is not None  # it is a range
    assert parameter.high is not None
    low, high = parameter.low, parameter.high
    whole = is_whole(name)
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


def _beyond_choices(name: str, choices: list[int | float | str], value: float) -> str | None:
    """The same of choices that are numbers: they may go on as far as they are apart at that end."""
    numbers = sorted(choice for choice in choices if isinstance(choice, int | float))
    if len(numbers) < max(2, len(choices)):
        return None
    if value == numbers[-1] and _may_be(name, 2 * numbers[-1] - numbers[-2]):
        return f"above {short(numbers[-1])}"
    if value == numbers[0] and _may_be(name, 2 * numbers[0] - numbers[1]):
        return f"below {short(numbers[0])}"
    return None


def _may_be(name: str, value: float) -> bool:
    try:
        Hyperparameters.model_validate({name: value})
    except ValidationError:
        return False
    return True
