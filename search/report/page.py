"""The report's page: an `Analysis` and its figures, laid out by page.html."""

from importlib.resources import files

import plotly.graph_objects as go
from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from search import words
from search.report import figures
from search.report.analysis import Analysis
from search.report.cost import COSTS, varied
from search.text import percent, points, short


def render(analysis: Analysis) -> str:
    """The page as HTML in which everything is inlined, plotly.js once."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"percent": percent, "short": short, "points": points, "interval": words.interval}
    template = environment.from_string(files("search.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        analysis=analysis,
        summary=analysis.summary,
        standings=analysis.standings,
        words=words,
        cost_titles=COSTS,
        figures={name: _html(figure, name) for name, figure in _drawn(analysis).items()},
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  plotly's own code, not a user's text
    )


def _drawn(analysis: Analysis) -> dict[str, go.Figure]:
    """The figures that there are numbers for."""
    drawn = {"history": figures.history(analysis), "intermediate_values": figures.intermediate_values(analysis)}
    wanted = {
        "finalists": (figures.finalists, analysis.standings),
        "ranking": (figures.ranking, analysis.repeated and analysis.ranking),
        "writeup": (figures.writeup, analysis.comparison),
        "importances": (figures.importances, analysis.importances.ped_anova or analysis.importances.fanova),
        "training_curves": (figures.training_curves, analysis.ranking),
        "costs": (figures.costs, varied(analysis.costs)),
        "confusion": (figures.confusion, analysis.network),
    }
    return drawn | {name: draw(analysis) for name, (draw, numbers) in wanted.items() if numbers}


def _html(figure: go.Figure, name: str) -> Markup:
    """The figure as a fragment; plotly escapes what it puts into its JSON."""
    fragment = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False, "responsive": True}
    )
    return Markup(fragment)  # noqa: S704
