"""The reports' pages: numbers and their figures, laid out by the templates beside this."""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from search import words
from search.report import estimates, figures
from search.report.analysis import Analysis
from search.report.comparison import Comparison
from search.report.cost import COSTS, varied
from search.text import assignments, count, percent, points, short


def render(analysis: Analysis) -> str:
    """The page of a study."""
    return _page(
        "page.html",
        {name: draw(analysis) for name, draw in drawers(analysis).items()},
        analysis=analysis,
        summary=analysis.summary,
        standings=analysis.standings,
        words=words,
        cost_titles=COSTS,
    )


def render_comparison(comparison: Comparison, names: list[str]) -> str:
    """The page of several studies."""
    drawn = {}
    if comparison.answers:
        drawn = {
            "answers": estimates.answers(comparison),
            "by_epochs": figures.best_so_far(comparison, "epochs"),
            "by_seconds": figures.best_so_far(comparison, "seconds"),
        }
    return _page("comparison.html", drawn, comparison=comparison, title=f"Studies {', '.join(names)}")


def _page(template: str, drawn: dict[str, go.Figure], **values: Any) -> str:
    """HTML in which everything is inlined, plotly.js once."""
    environment = Environment(
        loader=PackageLoader("search", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    filters = (assignments, count, percent, points, short, words.interval)
    environment.filters |= {each.__name__: each for each in filters}
    return environment.get_template(template).render(
        figures={name: _html(figure, name) for name, figure in drawn.items()},
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  plotly's own code, not a user's text
        **values,
    )


def drawers(analysis: Analysis) -> dict[str, Callable[[Analysis], go.Figure]]:
    """What draws each figure that there are numbers for."""
    found = analysis.importances
    wanted: dict[str, tuple[Callable[[Analysis], go.Figure], object]] = {
        "history": (figures.history, True),
        "intermediate_values": (figures.intermediate_values, True),
        "finalists": (estimates.finalists, analysis.standings),
        "ranking": (estimates.ranking, analysis.repeated and analysis.ranking),
        "writeup": (estimates.writeup, analysis.comparison),
        "importances": (figures.importances, found and (found.ped_anova or found.fanova)),
        "training_curves": (figures.training_curves, analysis.ranking),
        "costs": (figures.costs, varied(analysis.costs)),
        "confusion": (figures.confusion, analysis.network),
    }
    return {name: draw for name, (draw, numbers) in wanted.items() if numbers}


def _html(figure: go.Figure, name: str) -> Markup:
    """The figure as a fragment; plotly escapes what it puts into its JSON."""
    fragment = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False, "responsive": True}
    )
    return Markup(fragment)  # noqa: S704
