"""How numbers are written on the terminal and in the report, their colours, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def percent(share: float, digits: int = 2) -> str:
    """A share of 1, as an accuracy is: 92.34 %."""
    return f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points: 0.21."""
    return f"{round(100 * difference, 2) + 0.0:.2f}"  # and no -0.00


def duration(seconds: float) -> str:
    """Seconds: 59 s, 1 min 01 s, 1 h 01 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def count(number: int, noun: str) -> str:
    """1 worker, 2 workers."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def written(value: object) -> str:
    """A parameter's value as a study file has it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def short(value: object) -> str:
    """The same with four significant digits if it is a float."""
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def assignments(params: Mapping[str, Any]) -> str:
    """Parameters in one line: epochs=3 learning_rate=0.001."""
    return " ".join(f"{name}={short(value)}" for name, value in params.items())


def marked(name: object, mark: str | None) -> str:
    """A trial or configuration, and what marks it: 2 (start 2)."""
    return f"{name} ({mark})" if mark else str(name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The close one of the known names, or else all of them."""
    close = difflib.get_close_matches(name, known := list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


COLOURS = {"complete": "#2B87C8", "pruned": "#7F8790", "paused": "#B3BAC2", "fail": "#CC79A7"}
BEST_COLOUR = "#D55E00"  # of the answer, and of nothing else
FRONT = "#009E73"  # of what leads: the best so far, the Pareto front
AGAIN = "#009E73"
THREE = ("#2B87C8", "#009E73", "#CC79A7")
SCALE = "Cividis"
GREY = "#7D7D7D"  # of text on white and on the dashboard's dark #1E1E1E: a contrast of 4.1 to each, and none has more
INK = "#1b1b1b"  # of text, with a contrast above 4 to white and to the blue
