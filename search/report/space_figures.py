"""Plotly figures of accuracy over the search space, and of accuracy against cost."""

import math
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from search.formatting import BEST_COLOUR, COLOURS, FRONT, SCALE, percent, short, written
from search.report.analysis import Analysis
from search.report.cost import COSTS, Cost
from search.report.history import TrialRecord, drawn_trials
from search.report.importance import ordered, position
from search.report.style import (
    ACCURACY,
    ANSWER,
    SHARE,
    figure_of,
    in_sight,
    literal,
    logarithmic,
    plain,
    small,
    stepped,
)
from search.study.parameters import Parameter, merged

MOST_COSTS = 1000  # configurations drawn besides the Pareto fronts
TOP = 0.1  # share of the complete trials with highlighted lines
MARGIN = 0.06  # of a range, at both ends of its axis
LONE = 0.01  # accuracy shown above and below a single value
BELOW = -0.12  # bottom of the parallel coordinates, in axis lengths
FEW = 10  # values of a hyperparameter up to which a map shows cells instead of contours


def slice_over(analysis: Analysis, name: str) -> go.Figure:
    """Accuracy of the complete trials over one hyperparameter."""
    parameter = _space(analysis)[name]
    complete = [trial for trial in analysis.trials if trial.state == "complete" and name in trial.params]
    trials = drawn_trials(complete)
    figure = small(name, "accuracy", yaxis={"tickformat": SHARE, "range": in_sight([*map(_accuracy, trials)])})
    if len({*map(_accuracy, trials)}) == 1:  # plotly would show 0 to 150 %
        figure.update_yaxes(range=[_accuracy(trials[0]) - LONE, _accuracy(trials[0]) + LONE])
    figure.add_scatter(
        x=_values(parameter, (trial.params[name] for trial in trials)),
        y=[trial.accuracy for trial in trials],
        text=[f"trial {trial.label}, {_setting(trial, name)}" for trial in trials],
        hovertemplate=f"%{{text}}<br>{ACCURACY}",
        mode="markers",
        marker={"color": COLOURS["complete"], "size": 7, "opacity": 0.7},
    )
    chosen = analysis.chosen
    if chosen and name in chosen.trial.params:
        figure.add_scatter(
            x=_values(parameter, [chosen.trial.params[name]]),
            y=[chosen.trial.accuracy],
            hovertemplate=f"{literal(chosen.name)}, {_setting(chosen.trial, name)}<br>{ACCURACY}",
            mode="markers",
            marker=ANSWER,
        )
    return figure.update_xaxes(_axis(name, parameter), range=_range(parameter))


def parallel_coordinates(analysis: Analysis) -> go.Figure:
    """One line per trial through its hyperparameters; plotly's own parcoords needs WebGL, which printing lacks."""
    space = _space(analysis)
    score_on = analysis.summary.score_on
    chosen = analysis.chosen
    trials = [trial for trial in drawn_trials(analysis.trials) if trial.accuracy is not None]
    complete = sorted((trial for trial in trials if trial.state == "complete"), key=_accuracy)
    top = complete[-max(1, round(TOP * len(complete))) :] if complete else []
    groups = {
        "pruned": ([trial for trial in trials if trial.state == "pruned"], COLOURS["pruned"], 0.35, 1.0),
        "complete": (complete[: len(complete) - len(top)], COLOURS["complete"], 0.5, 1.0),
        "the best" if len(top) == 1 else f"the best {len(top)}": (top, FRONT, 0.9, 2.0),
    }
    if chosen:
        groups[literal(chosen.name)] = ([chosen.trial], BEST_COLOUR, 1.0, 3.0)
    accuracies = [_accuracy(trial) for trial in trials]
    low, high = min(accuracies, default=0.0), max(accuracies, default=1.0)
    names = [*space, "accuracy"]
    bottom = 2 * BELOW if analysis.conditional else BELOW
    figure = figure_of("", "", yaxis_range=[bottom, 1.12], yaxis_visible=False, yaxis_fixedrange=True)
    for label, (shown, colour, opacity, width) in groups.items():
        lines = [_line(space, trial, low, high) for trial in shown]
        if lines:
            figure.add_scatter(
                x=[place for _ in lines for place in [*range(len(names)), None]],
                y=[each for line in lines for each in [*line, None]],
                customdata=[trial.label for trial in shown for _ in range(len(names) + 1)],
                text=[text for trial in shown for text in [*_stations(space, trial, score_on), None]],
                hovertemplate="trial %{customdata}<br>%{text}<extra></extra>",
                mode="lines",
                name=label,
                line={"color": colour, "width": width},
                opacity=opacity,
            )
    for place, (name, parameter) in enumerate(space.items()):
        for value in _ticks(parameter):
            _tick(figure, place, position(parameter, value), short(value))
        if any(name not in trial.params for trial in trials):  # not searched under each trial's conditions
            _tick(figure, place, 1.5 * BELOW, "–")
    for at, accuracy in ((0.0, low), (1.0, high)):
        _tick(figure, len(space), at, f"{accuracy:.1%}")
    titles = [*map(literal, space), f"{score_on} accuracy"]
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=[title.replace("_", "_<br>", 1).replace(" ", "<br>") for title in titles],
        showgrid=True,
        gridwidth=2,
        range=[-0.4, len(names) - 0.6],
        side="top",
        fixedrange=True,
    )
    return figure.update_layout(height=440, legend={"y": -0.02, "yanchor": "top"}, margin={"t": 60, "b": 40})


def _line(space: dict[str, Parameter], trial: TrialRecord, low: float, high: float) -> list[float]:
    values = [
        position(parameter, trial.params[name]) if name in trial.params else 1.5 * BELOW
        for name, parameter in space.items()
    ]
    return [*values, (_accuracy(trial) - low) / (high - low) if high > low else 0.5]


def _stations(space: dict[str, Parameter], trial: TrialRecord, score_on: str) -> list[str]:
    values = [_setting(trial, name) if name in trial.params else f"no {literal(name)}" for name in space]
    return [*values, f"{percent(_accuracy(trial))} {score_on} accuracy"]


def _setting(trial: TrialRecord, name: str) -> str:
    value = trial.params[name]
    return f"{literal(name)} {plain(value) if _is_number(value) else literal(written(value))}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ticks(parameter: Parameter) -> list[Any]:
    return [parameter.low, parameter.high] if parameter.choices is None else ordered(parameter)


def _tick(figure: go.Figure, x: float, y: float, text: str) -> None:
    shift = {"yshift": -11 if y == 0 else 11 if y == 1 else 0, "xshift": 0 if y in (0, 1) else 6}
    anchor = "center" if y in (0, 1) else "left"
    figure.add_annotation(x=x, y=y, text=literal(text), showarrow=False, font_size=11, xanchor=anchor, **shift)


def contour(analysis: Analysis) -> go.Figure:
    """Map of the mean accuracy over the two most important hyperparameters."""
    found = analysis.landscape
    assert found is not None  # `drawers` checks it
    x, y = (_space(analysis)[name] for name in (found.x, found.y))
    figure = figure_of(found.x, found.y, height=460, showlegend=False)
    xs, ys = _values(x, found.xs), _values(y, found.ys)
    seen = in_sight([mean for row in found.z for mean in row if mean is not None])
    surface = {
        "x": xs,
        "y": ys,
        "z": found.z,
        "colorscale": SCALE,
        "zmin": seen[0] if seen else None,
        "zmax": seen[1] if seen else None,
        # A horizontal colour bar would overlap the title of the x axis.
        "colorbar": {"thickness": 12, "xpad": 4, "tickformat": SHARE, "nticks": 6},
        "text": [[f"{found.x} {a}, {found.y} {b}" for a in _written(x, found.xs)] for b in _written(y, found.ys)],
        "hovertemplate": "%{text}<br>mean %{z:.2%}<extra></extra>",
    }
    dense = all(each.choices is None for each in (x, y)) and min(len(found.xs), len(found.ys)) > FEW
    figure.add_trace(go.Contour(**surface, connectgaps=False, line_width=0.5) if dense else go.Heatmap(**surface))
    figure.add_scatter(
        x=_values(x, (point[0] for point in found.points)),
        y=_values(y, (point[1] for point in found.points)),
        mode="markers",
        marker={"color": "white", "size": 6, "line": {"color": "#1b1f24", "width": 1.2}},
        hoverinfo="skip",
    )
    if (chosen := analysis.chosen) and {found.x, found.y} <= chosen.trial.params.keys():
        figure.add_scatter(
            x=_values(x, [chosen.trial.params[found.x]]),
            y=_values(y, [chosen.trial.params[found.y]]),
            hovertemplate=f"{literal(chosen.name)}<extra></extra>",
            mode="markers",
            marker=ANSWER | {"line": {"color": "white", "width": 1.5}},
        )
    return figure.update_xaxes(_axis(found.x, x)).update_yaxes(_axis(found.y, y))


def cost(analysis: Analysis, name: str) -> go.Figure:
    """Accuracy against one of COSTS, with the Pareto front."""
    title = COSTS[name]
    seen = in_sight([each.accuracy for each in analysis.costs])
    figure = small(title, "accuracy", yaxis={"tickformat": SHARE, "range": seen})
    front = sorted((each for each in analysis.costs if name in each.fronts), key=lambda each: getattr(each, name))
    shown = analysis.costs[:MOST_COSTS]
    figure.add_scatter(
        x=[getattr(each, name) for each in shown],
        y=[each.accuracy for each in shown],
        text=[_costing(each, name) for each in shown],
        hovertemplate=f"%{{text}}<br>{ACCURACY}",
        mode="markers",
        name="configuration",
        marker={"color": COLOURS["complete"], "size": 7, "opacity": 0.6},
    )
    figure.add_scatter(
        x=[getattr(each, name) for each in front],
        y=[each.accuracy for each in front],
        text=[_costing(each, name) for each in front],
        hovertemplate=f"%{{text}}<br>{ACCURACY}",
        mode="lines+markers",
        name="Pareto front",
        marker={"color": FRONT, "size": 8},
        line={"shape": "hv", "width": 2},
    )
    if answer := analysis.answer_cost:
        figure.add_scatter(
            x=[getattr(answer, name)],
            y=[answer.accuracy],
            text=[_costing(answer, name)],
            hovertemplate=f"selected configuration, %{{text}}<br>{ACCURACY}",
            mode="markers",
            name="selected configuration",
            marker=ANSWER,
        )
    values = [getattr(each, name) for each in analysis.costs]
    if name == "epochs":
        return figure.update_xaxes(stepped(min(values), max(values)))
    return figure.update_xaxes(logarithmic(min(values), max(values)) if min(values) > 0 else {"type": "linear"})


def _costing(cost: Cost, name: str) -> str:
    label = cost.label if cost.trial is None else f"trial {cost.trial}: {cost.label}"
    return f"{literal(label)}<br>{plain(getattr(cost, name))} {COSTS[name]}"


def _space(analysis: Analysis) -> dict[str, Parameter]:
    return {name: merged(tables) for name, tables in analysis.space.items()}


def _axis(name: str, parameter: Parameter) -> dict[str, Any]:
    if parameter.choices is not None:
        labels = [literal(written(choice)) for choice in ordered(parameter)]
        lines = [label.replace("+", "+<br>") for label in labels]  # combined augmentations are long
        title = {"text": literal(name), "standoff": 8}
        ticks = {"categoryarray": labels, "tickvals": labels, "ticktext": lines}
        return {"type": "category", "title": title, **ticks}
    whole = parameter.whole
    if parameter.log:
        return logarithmic(*parameter.range, whole=whole)
    if parameter.step or whole:
        return stepped(*parameter.range, parameter.step or 1)
    return {"type": "linear"}


def _range(parameter: Parameter) -> tuple[float, float]:
    # In plotly's units: categories by index, logarithmic axes by exponent.
    if parameter.choices is not None:
        return -0.5, len(parameter.choices) - 0.5
    low, high = (math.log10(end) if parameter.log else end for end in parameter.range)
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def _values(parameter: Parameter, values: Iterable[Any]) -> list[Any]:
    return [literal(written(value)) if parameter.choices is not None else value for value in values]


def _written(parameter: Parameter, values: Iterable[Any]) -> list[str]:
    return [literal(written(value)) if parameter.choices is not None else plain(value) for value in values]


def _accuracy(trial: TrialRecord) -> float:
    return trial.accuracy or 0.0
