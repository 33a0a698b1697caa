"""The pictures of a report: plotly figures from an `Analysis`. Nothing here computes."""

from collections.abc import Collection

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fmnist.data import CLASSES
from search.colours import BEST, COLOURS, THREE
from search.report.analysis import Analysis, TrialRecord
from search.report.comparison import Comparison
from search.report.cost import COSTS, varied
from search.report.curves import MOST
from search.report.style import figure_of
from search.text import assignments


def history(analysis: Analysis) -> go.Figure:
    """The accuracy of each trial, and the best complete one so far."""
    figure = figure_of("trial", f"{analysis.summary.score_on} accuracy", yaxis_tickformat=".1%")
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
    figure = figure_of("epoch", f"{analysis.summary.score_on} accuracy", yaxis_tickformat=".1%")
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
    """How much each hyperparameter matters by each method, as shares of 1."""
    assert analysis.importances is not None  # the page asks only then
    figure = figure_of("importance (share of 1)", "", yaxis_automargin=True, barmode="group")
    methods = {"PED-ANOVA": analysis.importances.ped_anova, "fANOVA": analysis.importances.fanova}
    for (method, shares), colour in zip(methods.items(), THREE, strict=False):
        ranked = sorted((shares or {}).items(), key=lambda item: item[1].share)
        figure.add_bar(
            x=[importance.share for _, importance in ranked],
            y=[name for name, _ in ranked],
            error_x={
                "type": "data",
                "array": [importance.high - importance.share for _, importance in ranked],
                "arrayminus": [importance.share - importance.low for _, importance in ranked],
            },
            orientation="h",
            name=method,
            marker_color=colour,
            visible=shares is not None,
        )
    return figure


def training_curves(analysis: Analysis) -> go.Figure:
    """The best trials' accuracy on the images they learn from and on those that score them."""
    figure = figure_of("epoch", "accuracy", yaxis_tickformat=".1%")
    complete = [trial for trial in analysis.trials if trial.state == "complete" and trial.history]
    best = sorted(complete, key=lambda trial: trial.accuracy or 0.0, reverse=True)[:MOST]
    for first, trial in enumerate(best):
        x = [epoch.epoch for epoch in trial.history]
        for name, values, colour, dash in (
            (analysis.summary.score_on, [epoch.accuracy for epoch in trial.history], BEST, "solid"),
            ("training", [epoch.train_accuracy for epoch in trial.history], COLOURS["complete"], "dot"),
        ):
            figure.add_scatter(
                x=x,
                y=values,
                text=_hover(trial),
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=first == 0,
                line={"color": colour, "dash": dash, "width": 1.5},
            )
    return figure


def costs(analysis: Analysis, among: Collection[str] = COSTS) -> go.Figure:
    """Accuracy against each cost, with the front of those that no other matches for less.

    Args:
        among: the COSTS that may be drawn; those in which all are alike are not.
    """
    shown = {name: title for name, title in varied(analysis.costs).items() if name in among}
    figure = make_subplots(rows=1, cols=len(shown), shared_yaxes=True, horizontal_spacing=0.03)
    for column, (name, title) in enumerate(shown.items(), start=1):
        front = sorted((cost for cost in analysis.costs if name in cost.fronts), key=lambda cost: getattr(cost, name))
        for label, rows, mode, colour in (
            ("configuration", analysis.costs, "markers", COLOURS["complete"]),
            ("Pareto front", front, "lines+markers", BEST),
        ):
            figure.add_scatter(
                x=[getattr(cost, name) for cost in rows],
                y=[cost.accuracy for cost in rows],
                text=[cost.label for cost in rows],
                mode=mode,
                name=label,
                legendgroup=label,
                showlegend=column == 1,
                marker={"color": colour},
                line={"shape": "hv"},
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=title, type="log", row=1, col=column)
    figure.update_yaxes(tickformat=".1%")
    figure.update_yaxes(title_text=f"{analysis.summary.score_on} accuracy", col=1)
    return figure.update_layout(
        template="plotly_white",
        height=420,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": 1.1},
    )


def best_so_far(comparison: Comparison, by: str) -> go.Figure:
    """The best complete trial so far of each study, by `epochs` or by `seconds`."""
    title = "epochs trained" if by == "epochs" else "minutes since the first trial began"
    figure = figure_of(title, "accuracy", yaxis_tickformat=".1%")
    for answer in comparison.answers:
        progress = answer.progress
        x = progress.epochs if by == "epochs" else [seconds / 60 for seconds in progress.seconds]
        figure.add_scatter(x=x, y=progress.best, mode="lines+markers", line={"shape": "hv"}, name=answer.study)
    return figure.update_layout(colorway=[*THREE, *COLOURS.values(), BEST])


def confusion(analysis: Analysis) -> go.Figure:
    """Images of each class by the class that the best network takes them for."""
    assert analysis.network is not None  # the page asks only then
    figure = figure_of("predicted", "true", yaxis_autorange="reversed", xaxis_automargin=True, yaxis_automargin=True)
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
