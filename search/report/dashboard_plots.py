"""The report in optuna-dashboard: some figures as custom plots, and a note with the result.

They are stored with the study, and listing studies reads all of them. So they are few and small.
"""

import re
import shlex
from dataclasses import replace

import plotly.graph_objects as go

from fmnist.classes import CLASSES
from search.database.connection import lock, opened
from search.formatting import COLOURS, GREY, INK, assignments, percent
from search.report.analysis import Analysis
from search.report.importance import Importances
from search.report.network import BestNetwork
from search.report.page import drawers
from search.report.style import figure_of
from search.results import wording
from search.study.store import load_study

COST = "seconds"  # the cost shown
CLEAR = "rgba(0,0,0,0)"
FAINT = "rgba(125,125,125,0.3)"  # GREY
MOST = 50  # best configurations drawn besides those on the Pareto front


def publish(analysis: Analysis, url: str) -> None:
    """Replace the study's figures and note; text that users added below the note is kept.

    Raises:
        StorageError, StudyError: the database cannot be written, or the study was deleted.
    """
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    with lock(url), opened(url, "write") as storage:  # each is stored in several parts
        study = load_study(storage, analysis.summary.study)
        for name, figure in custom_plots(analysis).items():
            save_plotly_graph_object(study, figure, graph_object_id=name)
        save_note(study, with_note(note(analysis), get_note(study)))


def custom_plots(analysis: Analysis) -> dict[str, go.Figure]:
    """The figures for which there are numbers, by their id in the dashboard."""
    drawable, drawn = drawers(analysis), {}
    # Both under one id, so that neither remains from an earlier report.
    if draw := drawable.get("early_importances") or drawable.get("importances"):
        drawn["importances"] = _titled(draw(analysis), _title(analysis.importances))
    if draw := drawable.get(f"cost_{COST}"):
        few = [cost for place, cost in enumerate(analysis.costs) if place < MOST or COST in cost.fronts]
        title = f"{analysis.summary.score_on.capitalize()} accuracy and cost"
        drawn["costs"] = _titled(draw(replace(analysis, costs=few)), title).update_layout(showlegend=True)
    if network := analysis.network:
        title = f"Confusion matrix of the best network: {percent(network.accuracy)} {network.scored_on} accuracy"
        drawn["confusion"] = _titled(_confusion(network), title)
    return drawn


def _confusion(network: BestNetwork) -> go.Figure:
    figure = figure_of("predicted", "true", yaxis_autorange="reversed")
    return figure.add_heatmap(
        z=network.confusion,
        x=CLASSES,
        y=CLASSES,
        colorscale=["#ffffff", COLOURS["complete"]],
        texttemplate="%{z}",
        textfont_color=INK,
        showscale=False,
        hovertemplate="%{y} predicted as %{x}: %{z}<extra></extra>",
    )


def _titled(figure: go.Figure, title: str) -> go.Figure:
    # The dashboard sets the size, shows no heading, and uses the same colours in light and dark mode. Without
    # plotly's template, which takes 7 kB.
    figure.update_layout(title={"text": title, "font": {"size": 16}}, template="none", height=None, margin_t=90)
    figure.update_layout(font_color=GREY, paper_bgcolor=CLEAR, plot_bgcolor=CLEAR)
    figure.update_traces(error_x_color=GREY, marker_opacity=0.5, selector={"type": "bar"})
    lines = {"gridcolor": FAINT, "zerolinecolor": FAINT, "linecolor": GREY, "tickcolor": GREY}
    return figure.update_xaxes(lines).update_yaxes(lines | {"automargin": True, "title_standoff": 12})


END_OF_OURS = "_What is above is written anew after each run; what you write below stays._"


def _title(found: Importances | None) -> str:
    when = f" after {found.early.when}" if found and found.early else ""
    return f"Hyperparameter importance{when}, 95 % intervals"


def _on_importances(found: Importances) -> str:
    ours = f"those in “{_title(found)}”"
    if found.early:
        return (
            "Its own importances are for the final accuracy of complete trials only (PED-ANOVA, without intervals), "
            f"{ours} for an earlier accuracy that all trials reached. What helps early may not help in the end."
        )
    return (
        "Its own importances (PED-ANOVA over complete trials only) have no intervals, and their order may differ from "
        f"{ours}: where intervals overlap, do not rely on the order."
    )


def note(analysis: Analysis) -> str:
    """The result in sentences, and the commands in a code block."""
    answer = "\n\n".join(_escaped(sentence) for sentence in _answer(analysis))
    found, remarks = analysis.importances, ["In the dashboard's figures a step is 1/100 of an epoch."]
    if found and (found.methods or found.early):
        remarks.append(_on_importances(found))
    if analysis.provenance.password_note:
        remarks.append(analysis.provenance.password_note)
    commands = ["## Commands", "", "```console", *_commands(analysis), "```"]
    return "\n".join(["## Result", "", answer, "", " ".join(remarks), "", *commands])


def with_note(ours: str, former: str) -> str:
    """Our note followed by the user's text: all below END_OF_OURS, or the whole former note without that line."""
    above, mark, below = former.partition(END_OF_OURS)
    return f"{ours}\n\n{END_OF_OURS}\n\n{(below if mark else above).strip()}".rstrip()


def _answer(analysis: Analysis) -> list[str]:
    summary, best = analysis.summary, analysis.summary.best
    if found := analysis.standings:
        finalists = analysis.provenance.command("finalists", summary.study)
        return [*wording.answer(found, finalists), wording.checkpoint(found, finalists)]
    if analysis.repeated and (ranked := wording.ranked(analysis.ranking)):
        return [ranked]
    if best is None:
        return ["No trial is complete yet."]
    return [
        f"Trial {best.label}: {percent(best.value)} {summary.score_on} accuracy with {assignments(best.params)}.",
        wording.caution(summary),
        f"Best checkpoint  {best.checkpoint or 'not found'}",
    ]


def _commands(analysis: Analysis) -> list[str]:
    study, origin = analysis.summary.study, analysis.provenance
    commands = [origin.command("best", study, data=False), origin.command("report", study)]
    if analysis.network:
        commands.append(f"fmnist-search predict {shlex.quote(analysis.network.path)} IMAGE.png")
    if analysis.reproduction:
        commands.append(analysis.reproduction)
    return commands


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", text)
