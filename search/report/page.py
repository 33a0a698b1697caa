"""The report's page: an `Analysis` and its figures, laid out by page.html."""

from importlib.resources import files

import plotly.graph_objects as go
from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from search.report import figures
from search.report.analysis import Analysis
from search.text import percent, short


def render(analysis: Analysis) -> str:
    """The page as HTML in which everything is inlined, plotly.js once."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["percent"] = percent
    environment.filters["short"] = short
    template = environment.from_string(files("search.report").joinpath("page.html").read_text(encoding="utf-8"))
    drawn = {"history": figures.history(analysis), "intermediate_values": figures.intermediate_values(analysis)}
    if analysis.importances:
        drawn["importances"] = figures.importances(analysis)
    if analysis.network:
        drawn["confusion"] = figures.confusion(analysis)
    return template.render(
        analysis=analysis,
        summary=analysis.summary,
        figures={name: _html(figure, name) for name, figure in drawn.items()},
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  plotly's own code, not a user's text
    )


def _html(figure: go.Figure, name: str) -> Markup:
    """The figure as a fragment; plotly escapes what it puts into its JSON."""
    fragment = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False, "responsive": True}
    )
    return Markup(fragment)  # noqa: S704
