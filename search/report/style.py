"""How the reports' figures look. Fonts, grids and backgrounds are the page's: they follow its colour scheme."""

import html
import itertools
import math
import textwrap
from collections.abc import Sequence
from statistics import quantiles
from typing import Any

import plotly.graph_objects as go

from search.formatting import BEST_COLOUR

SHARE = ".2~%"  # of ticks
ANSWER = {"color": BEST_COLOUR, "size": 12, "symbol": "diamond"}  # a marker of the answer
ACCURACY = "%{y:.2%}<extra></extra>"  # the end of what is shown under the mouse
ROUND = (1, 2, 5)  # of ticks, and what is ten, a hundred ... times as much
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(n / 10 for n in range(10, 100)))
MOST_TICKS = 6
NEAREST = 0.17  # of an axis, between two ticks
FEWEST = 8  # accuracies among which some can be called outliers


def figure_of(x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with its axes' titles."""
    figure = go.Figure()
    figure.update_layout(
        xaxis={"title": {"text": x}, "automargin": True},
        yaxis={"title": {"text": y}, "automargin": True},
        margin={"l": 55, "r": 15, "t": 20, "b": 45},
        height=400,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    return figure.update_layout(layout)


def small(x: str, y: str, **layout: Any) -> go.Figure:
    """One of several figures side by side: what its colours mean is said beside them."""
    figure = figure_of(x, y, height=250, showlegend=False, margin={"l": 50, "r": 12, "t": 10, "b": 40})
    return figure.update_xaxes(tickangle=0, nticks=6).update_layout(layout)


def literal(text: str) -> str:
    """A text in which plotly sees no markup."""
    return html.escape(text, quote=False)


def wrapped(label: str) -> str:
    """A label of an axis in lines that leave room for the figure on a phone."""
    return "<br>".join(map(literal, textwrap.wrap(label, 24) or [label]))


def lines_of(labels: list[str]) -> int:
    """The lines that the longest wrapped label has."""
    return max((label.count("<br>") + 1 for label in labels), default=1)


def in_sight(accuracies: Sequence[float]) -> tuple[float, float] | None:
    """The range of an axis that leaves far outliers below it out of sight (Tukey, 1977: three times the
    distance of the quartiles); None if there are none."""
    if len(accuracies) < FEWEST:
        return None
    first, _, third = quantiles(accuracies, n=4)
    low, high = first - 3 * (third - first), max(accuracies)
    if min(accuracies) >= low:
        return None
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def stepped(low: float, high: float, step: float = 1) -> dict[str, Any]:
    """An axis from low to high in steps, with ticks at a few of them and none between."""
    sizes = (size * 10**power for power in itertools.count() for size in ROUND)
    stride = next(size for size in sizes if high - low < MOST_TICKS * size * step)
    return {"type": "linear", "tick0": low % step, "dtick": stride * step}


def logarithmic(low: float, high: float, *, whole: bool = False) -> dict[str, Any]:
    """An axis from low to high, both above 0, with a few round ticks: plotly's own are many, and rotate on a phone.

    whole: at whole numbers only.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for mantissas in MANTISSAS:
        marks = (mantissa * 10.0**decade for decade in decades for mantissa in mantissas)
        ticks = [mark for mark in marks if 0.999 * low <= mark <= 1.001 * high and not (whole and round(mark, 6) % 1)]
        if len(ticks) > 2:
            break
    least = NEAREST * math.log(high / low)
    strides = (ticks[::stride] for stride in itertools.count(1))
    ticks = next(few for few in strides if all(math.log(b / a) >= least for a, b in itertools.pairwise(few)))
    return {"type": "log", "tickvals": ticks, "ticktext": [_compact(tick) for tick in ticks]}


def _compact(value: float) -> str:
    """1500: 1.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def clock(seconds: float) -> tuple[float, str]:
    """How many seconds the unit has that suits a time of that length, and its name."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
