"""The figures of means and their intervals: finalists, rankings, the write-up beside ours, studies side by side."""

import plotly.graph_objects as go

from search.formatting import BEST_COLOUR, COLOURS, THREE, percent
from search.report.analysis import Analysis
from search.report.comparison import Comparison
from search.report.style import SHARE, figure_of, lines_of, wrapped
from search.report.writeup import WRITEUP_ACCURACY
from search.results import wording
from search.results.ranking import Estimate

SHARES = {"tickformat": SHARE, "tickangle": 0, "nticks": 6}
ROW, LINE = 26, 13  # pixels of a row, and of each further line of its label


def finalists(analysis: Analysis) -> go.Figure:
    """Each finalist's accuracy in the search and over its fresh seeds."""
    assert analysis.standings is not None  # the page asks only then
    rows = analysis.standings.finalists[::-1]
    names = [wording.called(finalist) for finalist in rows]
    figure = figure_of(f"{analysis.summary.score_on} accuracy", "", xaxis=SHARES)
    searched = [(finalist.search, name) for finalist, name in zip(rows, names, strict=True) if finalist.search]
    figure.add_scatter(
        x=[accuracy for accuracy, _ in searched],
        y=[name for _, name in searched],
        mode="markers",
        name="in the search",
        marker={"color": BEST_COLOUR, "symbol": "circle-open", "size": 11, "line": {"width": 2}},
        hovertemplate="%{y} in the search: %{x:.2%}<extra></extra>",
    )
    _dots(figure, [finalist.again.accuracy for finalist in rows], names, "re-trained, 95 % interval")
    return figure.update_layout(height=180 + 2 * ROW * len(rows))


def ranking(analysis: Analysis) -> go.Figure:
    """The mean accuracy of each configuration and its interval."""
    rows = analysis.ranking[::-1]
    figure = figure_of(f"{analysis.summary.score_on} accuracy", "", xaxis=SHARES)
    labels = [wrapped(row.label) for row in rows]
    _dots(figure, [row.accuracy for row in rows], labels, "mean, 95 % interval")
    return figure.update_layout(height=120 + (ROW + LINE * (lines_of(labels) - 1)) * len(rows))


def _dots(figure: go.Figure, estimates: list[Estimate], names: list[str], legend: str) -> None:
    figure.add_scatter(
        x=[each.mean for each in estimates],
        y=names,
        error_x={
            "type": "data",
            "array": [0 if each.high is None else each.high - each.mean for each in estimates],
        },
        text=[f"{percent(each.mean)} ({wording.interval(each)}), n = {each.n}" for each in estimates],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        name=legend,
        marker={"color": COLOURS["complete"], "size": 9},
    )


def writeup(analysis: Analysis) -> go.Figure:
    """Accuracy by epoch: the write-up's three trainings, and ours with intervals."""
    assert analysis.comparison is not None  # the page asks only then
    figure = figure_of("epoch", "test accuracy", yaxis_tickformat=SHARE, xaxis_dtick=1)
    for epochs, colour in zip(WRITEUP_ACCURACY, THREE, strict=True):
        rows = [row for row in analysis.comparison.by_epoch if row.epochs == epochs]
        x = [int(row.name) for row in rows]
        theirs = {"color": colour, "dash": "dot"}
        figure.add_scatter(
            x=x, y=[row.theirs for row in rows], mode="lines+markers", name=f"write-up, {epochs} epochs", line=theirs
        )
        figure.add_scatter(
            x=x,
            y=[row.ours.mean for row in rows],
            error_y={"type": "data", "array": [(row.ours.high or 0) - row.ours.mean for row in rows]},
            mode="lines+markers",
            name=f"ours, {epochs} epochs",
            line={"color": colour},
        )
    return figure


def answers(comparison: Comparison) -> go.Figure:
    """The accuracy of each study's answer, and its interval."""
    rows = comparison.answers[::-1]
    figure = figure_of("accuracy", "", xaxis=SHARES)
    _dots(figure, [row.accuracy for row in rows], [wrapped(row.study) for row in rows], "mean, 95 % interval")
    return figure.update_layout(height=180 + 2 * ROW * len(rows))
