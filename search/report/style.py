"""Layout and axes of figures. Fonts, grids and backgrounds come from the page (report.js), for its colour scheme."""

import html
import itertools
import math
import textwrap
from collections.abc import Sequence
from statistics import quantiles
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search.formatting import BEST_COLOUR, duration

SHARE = ".2~%"  # of ticks
ANSWER = {"color": BEST_COLOUR, "size": 12, "symbol": "diamond"}  # marker of the selected configuration
ACCURACY = "%{y:.2%}<extra></extra>"  # end of a hover text
ROUND = (1, 2, 5)  # distances of ticks, times powers of ten
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(n / 10 for n in range(10, 100)))
MOST_TICKS = 6
NEAREST = 0.17  # smallest distance of two ticks, as a share of the axis
FEWEST = 8  # accuracies from which outliers are hidden
GOOD, FEWEST_GOOD = 0.25, 5  # share, and least number, of the accuracies to which `focused` fits an axis
FINEST = 0.0025  # least distance from the best to the last of them


def figure_of(x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with titled axes."""
    figure = go.Figure()
    figure.update_layout(
        xaxis={"title": {"text": x}, "automargin": True},
        yaxis={"title": {"text": y, "standoff": 10}, "automargin": True, "ticklabelstandoff": 6},
        margin={"l": 55, "r": 15, "t": 20, "b": 45},
        height=400,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    return figure.update_layout(layout)


def small(x: str, y: str, **layout: Any) -> go.Figure:
    """A small figure without a legend, for a grid of figures with one legend beside them."""
    figure = figure_of(x, y, height=250, showlegend=False, margin={"l": 50, "r": 12, "t": 10, "b": 40})
    return figure.update_xaxes(tickangle=0, nticks=6).update_layout(layout)


def literal(text: str) -> str:
    """Escape a text for plotly, which interprets HTML tags."""
    return html.escape(text, quote=False)


def wrapped(label: str) -> str:
    """Wrap an axis label so that the figure fits a phone."""
    return "<br>".join(map(literal, textwrap.wrap(label, 24) or [label]))


def lines_of(labels: list[str]) -> int:
    """Number of lines of the longest wrapped label."""
    return max((label.count("<br>") + 1 for label in labels), default=1)


def in_sight(accuracies: Sequence[float]) -> tuple[float, float] | None:
    """Axis range without far outliers below (Tukey, 1977: three interquartile ranges); None if there are none."""
    if len(accuracies) < FEWEST:
        return None
    first, _, third = quantiles(accuracies, n=4)
    low, high = first - 3 * (third - first), max(accuracies)
    if min(accuracies) >= low:
        return None
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def focused(accuracies: Sequence[float]) -> tuple[float, float] | None:
    """Axis range whose upper half shows the best quarter, so that tenths of a point differ; None if all fit."""
    if len(accuracies) < FEWEST:
        return None
    ranked = sorted(accuracies, reverse=True)
    good = ranked[: max(FEWEST_GOOD, round(GOOD * len(ranked)))]
    height = 2 * max(good[0] - good[-1], FINEST)
    low, high = good[0] - height, good[0]
    return None if ranked[-1] >= low else (low, high + 0.06 * height)


def plain(value: float) -> str:
    """A number for hover texts: 43,210 or 0.0009178 (plotly would write 917.8µ)."""
    if value == int(value):
        return f"{int(value):,}"
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")


def span(start: float, end: float) -> str:
    """Two times of a search, in seconds, and how far they are apart: 1 min 05 s to 1 min 20 s (15 s)."""
    if end < 180:
        return f"{start:.1f} to {end:.1f} s ({end - start:.1f} s)"
    return f"{duration(start)} to {duration(end)} ({duration(end - start)})"


def stepped(low: float, high: float, step: float = 1) -> dict[str, Any]:
    """An axis with few ticks, all at low, low + step, ..., high."""
    sizes = (size * 10**power for power in itertools.count() for size in ROUND)
    stride = next(size for size in sizes if high - low < MOST_TICKS * size * step)
    return {"type": "linear", "tick0": low % step, "dtick": stride * step}


def logarithmic(low: float, high: float, *, whole: bool = False) -> dict[str, Any]:
    """A logarithmic axis with few round ticks (plotly's own are many, and rotate on a phone).

    Args:
        low, high: ends, above 0.
        whole: whether ticks must be whole numbers.
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
    """The unit for a duration: its length in seconds, and its name."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
