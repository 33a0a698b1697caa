"""The pictures of a report: plotly figures from an `Analysis`. Nothing here computes."""

from typing import Any

import plotly.graph_objects as go

from fmnist.data import CLASSES
from search.report.analysis import Analysis, TrialRecord
from search.text import assignments

# Okabe and Ito's colours, told apart with any kind of colour vision.
COLOURS = {"complete": "#0072B2", "pruned": "#E69F00", "fail": "#000000"}
BEST = "#D55E00"


def _figure(x: str, y: str, **layout: Any) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        xaxis_title=x,
        yaxis_title=y,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        height=420,
        legend={"orientation": "h", "y": 1.08},
        **layout,
    )
    return figure


def history(analysis: Analysis) -> go.Figure:
    """The accuracy of each trial, and the best complete one so far."""
    figure = _figure("trial", f"{analysis.summary.score_on} accuracy", yaxis_tickformat=".1%")
    for state in ("complete", "pruned"):
        trials = [trial for trial in analysis.trials if trial.state == state and trial.accuracy is not None]
        figure.add_scatter(
            x=[trial.number for trial in trials],
            y=[trial.accuracy for trial in trials],
            text=[_hover(trial) for trial in trials],
            mode="markers",
            name=state if state == "complete" else "pruned, at its last epoch",
            marker={"color": COLOURS[state], "symbol": "circle" if state == "complete" else "x"},
        )
    numbers: list[int] = []
    best: list[float] = []
    for trial in analysis.trials:
        if trial.state == "complete" and trial.accuracy is not None:
            numbers.append(trial.number)
            best.append(max(trial.accuracy, best[-1] if best else 0.0))
    figure.add_scatter(x=numbers, y=best, mode="lines", line={"shape": "hv", "color": BEST}, name="best so far")
    return figure


def intermediate_values(analysis: Analysis) -> go.Figure:
    """Each trial's accuracy by epoch."""
    figure = _figure("epoch", f"{analysis.summary.score_on} accuracy", yaxis_tickformat=".1%")
    best = analysis.summary.best.number if analysis.summary.best else None
    shown: set[str] = set()
    for trial in analysis.trials:
        if not trial.curve:
            continue
        kind = "best" if trial.number == best else trial.state
        figure.add_scatter(
            x=[epoch for epoch, _ in trial.curve],
            y=[accuracy for _, accuracy in trial.curve],
            text=_hover(trial),
            mode="lines+markers",
            name=kind,
            legendgroup=kind,
            showlegend=kind not in shown,
            line={"color": BEST if kind == "best" else COLOURS[trial.state], "width": 3 if kind == "best" else 1},
            opacity=1 if kind == "best" else 0.6,
        )
        shown.add(kind)
    return figure


def importances(analysis: Analysis) -> go.Figure:
    """How much each hyperparameter matters, as shares of 1."""
    assert analysis.importances is not None  # the page asks only then
    values = dict(sorted(analysis.importances.shares.items(), key=lambda item: item[1]))
    figure = _figure("importance (share of 1)", "", yaxis_automargin=True)
    figure.add_bar(
        x=list(values.values()),
        y=list(values),
        orientation="h",
        text=[f"{value:.2f}" for value in values.values()],
        marker_color=COLOURS["complete"],
    )
    return figure


def confusion(analysis: Analysis) -> go.Figure:
    """Images of each class by the class that the best network takes them for."""
    assert analysis.network is not None  # the page asks only then
    figure = _figure("predicted", "true", yaxis_autorange="reversed", xaxis_automargin=True, yaxis_automargin=True)
    figure.add_heatmap(
        z=analysis.network.confusion,
        x=CLASSES,
        y=CLASSES,
        colorscale="Blues",
        texttemplate="%{z}",
        showscale=False,
        hovertemplate="%{y} taken for %{x}: %{z}<extra></extra>",
    )
    return figure.update_layout(height=560)


def _hover(trial: TrialRecord) -> str:
    return f"trial {trial.number}: {assignments(trial.params)}"
