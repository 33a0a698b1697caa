"""HTML pages of the reports, from the templates in this package."""

import gzip
import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from search.formatting import BEST_COLOUR, COLOURS, FRONT, assignments, count, duration, percent, points, short
from search.report import figures, space_figures
from search.report.analysis import Analysis
from search.report.comparison import Comparison
from search.report.cost import varied
from search.report.findings import NEXT
from search.report.history import drawn_curves, drawn_trials
from search.report.network import diverging, grey
from search.report.style import in_sight
from search.results import wording

SECTIONS = {
    "answer": "Result",
    "importance": "Hyperparameter importance",
    "course": "Search history",
    "space": "Search space",
    "cost": "Cost",
    "network": "Best network",
    "next": "Recommendations",
    "provenance": "Provenance",
}
# plotly.js's cartesian bundle, which draws all traces used here and is a third of the one in plotly's Python package.
# CONTRIBUTING.md says how to update it together with that package.
PLOTLY_JS = Path(__file__).parent / "plotly" / "plotly-cartesian.min.js.gz"
DIGITS = 6  # significant digits of numbers in figures


def render(analysis: Analysis) -> str:
    """HTML page of a study."""
    network = analysis.network
    return _page(
        "page.html",
        {name: draw(analysis) for name, draw in drawers(analysis).items()},
        analysis=analysis,
        summary=analysis.summary,
        standings=analysis.standings,
        words=wording,
        sections=SECTIONS,
        advice=NEXT,
        cost_titles=varied(analysis.costs),
        thinned=_thinned(len(drawn_trials(analysis.trials)), len(analysis.trials), "trials"),
        thinned_curves=_thinned(len(drawn_curves(analysis.trials)), _curved(analysis), "curves"),
        outliers=_outliers(analysis),
        colours=COLOURS,
        best_colour=BEST_COLOUR,
        front_colour=FRONT,
        most_confused=max((pair[2] for pair in network.confused), default=1) if network else 1,
        filter_scale=_largest(network.filters.weights) if network and network.filters else 1,
    )


def _largest(weights: list[list[list[float]]]) -> float:
    return max(abs(one) for each in weights for row in each for one in row)


def render_comparison(comparison: Comparison, names: list[str]) -> str:
    """HTML page that compares several studies."""
    drawn = {}
    if comparison.answers:
        drawn = {
            "answers": figures.answers(comparison),
            "by_epochs": figures.best_so_far(comparison, "epochs"),
            "by_seconds": figures.best_so_far(comparison, "seconds"),
        }
    return _page("comparison.html", drawn, comparison=comparison, title=f"Studies {', '.join(names)}")


def _page(template: str, drawn: dict[str, go.Figure], **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("search", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    filters = (assignments, code, count, duration, moment, percent, points, short, wording.interval)
    environment.filters |= {each.__name__: each for each in (*filters, grey, diverging)}
    plain = {name: _plain(figure.to_plotly_json()) for name, figure in drawn.items()}
    return environment.get_template(template).render(
        figures=plain,
        figures_json=Markup(json.dumps(plain, separators=(",", ":")).replace("<", "\\u003c")),  # noqa: S704
        plotly_js=Markup(plotly_js()),  # noqa: S704  plotly's own code, no user input
        **values,
    )


def plotly_js() -> str:
    """The JavaScript that draws the figures.

    Raises:
        OSError: the file is missing or damaged.
    """
    return gzip.decompress(PLOTLY_JS.read_bytes()).decode()


def drawers(analysis: Analysis) -> dict[str, Callable[[Analysis], go.Figure]]:
    """Functions that draw the figures for which there are numbers, by figure name."""
    found = analysis.importances
    complete = analysis.summary.best is not None
    scored = any(trial.accuracy is not None for trial in analysis.trials)
    learned = any(trial.state == "complete" and trial.history for trial in analysis.trials)
    wanted: dict[str, tuple[Callable[[Analysis], go.Figure], object]] = {
        "finalists": (figures.finalists, analysis.standings and analysis.standings.finalists),
        "ranking": (figures.ranking, analysis.repeated and analysis.ranking),
        "writeup": (figures.writeup, analysis.comparison),
        "importances": (figures.importances, found and found.methods),
        "early_importances": (figures.early_importances, found and found.early),
        "history": (figures.history, scored),
        "history_by_time": (figures.history_by_time, scored),
        "intermediate_values": (figures.intermediate_values, scored),
        "training_curves": (figures.training_curves, learned),
        "timeline": (figures.timeline, analysis.spells),
        "parallel_coordinates": (space_figures.parallel_coordinates, complete),
        "contour": (space_figures.contour, analysis.landscape),
    }
    for name in analysis.definition["space"]:
        wanted[f"slice_{name}"] = (partial(space_figures.slice_over, name=name), complete)
    for name in varied(analysis.costs):
        wanted[f"cost_{name}"] = (partial(space_figures.cost, name=name), True)
    return {name: draw for name, (draw, numbers) in wanted.items() if numbers}


def _outliers(analysis: Analysis) -> float | None:
    # Lower end of the accuracy axis of the figures, if they hide outliers.
    seen = in_sight([cost.accuracy for cost in analysis.costs])
    return seen[0] if seen else None


def _curved(analysis: Analysis) -> int:
    return sum(bool(trial.curve) for trial in analysis.trials)


def _thinned(shown: int, total: int, what: str) -> str:
    if shown == total:
        return ""
    return f"{shown:,} of {total:,} {what} are drawn: the best, and an even selection of the others."


def _plain(value: Any) -> Any:
    # Rounded and without plotly's template, to keep the page small.
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name != "template"}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def code(text: str) -> Markup:
    """Escaped HTML of a sentence: backticks become code, and no line breaks before a %."""
    unbroken = str(escape(text)).replace(" %", "\u00a0%")
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", unbroken))  # noqa: S704  it is escaped


def moment(time: str) -> str:
    """Format an ISO 8601 time: 2026-11-26 07:05 UTC."""
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"
