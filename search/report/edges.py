"""A best value at the edge of its range: a better one may lie beyond."""

from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from fmnist.hyperparameters import Hyperparameters
from search.definition import StudyDefinition
from search.parameter import Parameter
from search.ranking import Configuration
from search.text import short

FEWEST = 10  # finished trials below which a best value at an edge tells nothing of the range
EDGE = 0.02  # of a range's width


def sentence(definition: StudyDefinition, trials: list[FrozenTrial], best: Configuration | None) -> str | None:
    """Which ranges to widen, if the best configuration lies at an edge of them."""
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(finished) < FEWEST or best is None:
        return None
    said = []
    for name, parameter in definition.space.items():
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
