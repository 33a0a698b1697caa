"""Number formats and colours of terminal and report, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def percent(share: float, digits: int = 2) -> str:
    """A fraction as a percentage: 92.34 %."""
    return f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points: 0.21."""
    return f"{round(100 * difference, 2) + 0.0:.2f}"  # + 0.0 turns -0.0 into 0.0


def duration(seconds: float) -> str:
    """A duration: 59 s, 1 min 01 s, 1 h 01 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 worker, 2 workers."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def written(value: object) -> str:
    """A parameter's value as in a study file, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def short(value: object) -> str:
    """A parameter's value, with four significant digits if it is a float."""
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def assignments(params: Mapping[str, Any]) -> str:
    """Parameters on one line: epochs=3 learning_rate=0.001."""
    return " ".join(f"{name}={short(value)}" for name, value in params.items())


def marked(name: object, mark: str | None) -> str:
    """A trial or configuration with its mark, if any: 2 (start 2)."""
    return f"{name} ({mark})" if mark else str(name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion: the closest known name, else all of them."""
    close = difflib.get_close_matches(name, known := list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"


COLOURS = {"complete": "#2B87C8", "pruned": "#7F8790", "paused": "#B3BAC2", "fail": "#CC79A7"}
BEST_COLOUR = "#D55E00"  # reserved for the winner or best trial
FRONT = "#009E73"  # best so far, Pareto front
AGAIN = "#009E73"
THREE = ("#2B87C8", "#009E73", "#CC79A7")
SCALE = "Cividis"
GREY = "#7D7D7D"  # text on white or the dashboard's dark #1E1E1E: the best contrast to both, 4.1
INK = "#1b1b1b"  # text; contrast above 4 to white and to the blue
