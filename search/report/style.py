"""How the reports' figures look. Fonts, grids and backgrounds are the page's: they follow its colour scheme."""

import html
import textwrap
from collections.abc import Sequence
from statistics import quantiles
from typing import Any

import plotly.graph_objects as go

# After Okabe and Ito's colours, which are told apart with any kind of colour vision: those that have a contrast of 3
# to both of the page's backgrounds (their blue is lightened for it), and a grey for what was ended early.
COLOURS = {"complete": "#2B87C8", "pruned": "#7F8790", "fail": "#CC79A7"}
BEST = "#D55E00"
AGAIN = "#009E73"
THREE = ("#2B87C8", "#009E73", "#CC79A7")
SCALE = "Cividis"
ACCURACY = "%{y:.2%}<extra></extra>"  # the end of what is shown under the mouse
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
    """The range of an axis that leaves far outliers below it out of sight (Tukey's fence); None if there are none."""
    if len(accuracies) < FEWEST:
        return None
    first, _, third = quantiles(accuracies, n=4)
    low, high = first - 1.5 * (third - first), max(accuracies)
    if min(accuracies) >= low:
        return None
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def clock(seconds: float) -> tuple[float, str]:
    """How many seconds the unit has that suits a time of that length, and its name."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
