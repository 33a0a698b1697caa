"""Plotly figures of the reports, drawn from an `Analysis` or a `Comparison`."""

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from search.formatting import AGAIN, BEST_COLOUR, COLOURS, FRONT, THREE, assignments, duration, percent
from search.report.analysis import Analysis
from search.report.comparison import Comparison
from search.report.history import BEST_TRIALS, Spell, TrialRecord, drawn_curves, drawn_trials
from search.report.importance import Importances
from search.report.style import (
    ACCURACY,
    ANSWER,
    SHARE,
    clock,
    figure_of,
    focused,
    lines_of,
    literal,
    plain,
    span,
    wrapped,
)
from search.report.writeup import WRITEUP_ACCURACY
from search.results import wording
from search.results.intervals import Estimate

BAR = 22  # pixels per worker
RUNNING = "#E69F00"
BOTTOM = 0.04  # of an axis, below the markers of what is out of view
FINE = 300  # attempts from which lines between bars would hide the bars
METHODS = {"fANOVA": THREE[0], "PED-ANOVA": THREE[1]}  # fixed, also in figures with one method
KINDS = {  # of attempts
    "complete": COLOURS["complete"],
    "pruned": COLOURS["pruned"],
    "paused": COLOURS["paused"],
    "finalists": AGAIN,
    "running": RUNNING,
    "returned to the queue, or failed": COLOURS["fail"],
}


def history(analysis: Analysis) -> go.Figure:
    """Accuracy by trial number, with the best complete trial so far."""
    return _history(analysis, "trial", lambda trial: trial.number)


def history_by_time(analysis: Analysis) -> go.Figure:
    """Accuracy by the wall time at which each trial ended, with the best complete trial so far."""
    unit, name = clock(max((trial.ended for trial in analysis.trials), default=0.0))
    return _history(analysis, f"{name} since the first trial started", lambda trial: trial.ended / unit)


def _history(analysis: Analysis, title: str, x: Callable[[TrialRecord], float]) -> go.Figure:
    figure = figure_of(title, f"{analysis.summary.score_on} accuracy", yaxis_tickformat=SHARE)
    trials = [trial for trial in drawn_trials(analysis.trials) if _scored(trial)]
    for state in ("pruned", "complete"):
        name = state if state == "complete" else "pruned, at its last epoch"
        cross = {"symbol": "x-thin", "line": {"color": COLOURS[state], "width": 1.5}} if state == "pruned" else {}
        shown = [trial for trial in trials if trial.state == state]
        _points(figure, shown, x, name, {"color": COLOURS[state], "size": 7} | cross)
    best = _best_so_far(analysis, x)
    figure.add_scatter(
        x=[at for at, _ in best],
        y=[trial.accuracy for _, trial in best],
        text=[trial.label for _, trial in best],
        mode="lines",
        line={"shape": "hv", "color": FRONT, "width": 2.5},
        name="best single training run so far",
        hovertemplate=f"best single training run so far, trial %{{text}}<br>{ACCURACY}",
    )
    if seen := focused([_accuracy(trial) for trial in trials]):
        low = seen[0]
        hidden = [trial for trial in trials if _accuracy(trial) < low]
        marker = {"color": COLOURS["pruned"], "symbol": "triangle-down", "size": 8}
        _points(figure, hidden, x, f"below {percent(low, 1)}", marker, at=low)
        figure.update_yaxes(range=[low - BOTTOM * (seen[1] - low), seen[1]])
    if chosen := analysis.chosen:
        _points(figure, [chosen.trial], x, literal(chosen.name), ANSWER)
    return figure


def _points(
    figure: go.Figure,
    trials: list[TrialRecord],
    x: Callable[[TrialRecord], float],
    name: str,
    marker: dict[str, Any],
    at: float | None = None,
) -> None:
    """Add trials as points at their accuracy, or all at one height."""
    figure.add_scatter(
        x=[x(trial) for trial in trials],
        y=[trial.accuracy if at is None else at for trial in trials],
        text=[f"{_hover(trial)}<br>{percent(_accuracy(trial))}" for trial in trials],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        name=name,
        marker=marker,
    )


def _best_so_far(analysis: Analysis, x: Callable[[TrialRecord], float]) -> list[tuple[float, TrialRecord]]:
    """The best complete trial so far by position: one entry per improvement and one at the end."""
    found: list[tuple[float, TrialRecord]] = []
    complete = [trial for trial in analysis.trials if trial.state == "complete" and _scored(trial)]
    ordered = sorted(complete, key=x)
    for trial in ordered:
        best = trial if not found or _accuracy(trial) > _accuracy(found[-1][1]) else found[-1][1]
        if best is trial or trial is ordered[-1]:
            found.append((x(trial), best))
    return found


def intermediate_values(analysis: Analysis) -> go.Figure:
    """Accuracy of each trial by epoch, with a cross where it was pruned."""
    figure = figure_of(
        "epoch", f"{analysis.summary.score_on} accuracy", yaxis_tickformat=SHARE, xaxis_rangemode="tozero"
    )
    chosen = analysis.chosen
    trials = [trial for trial in drawn_curves(analysis.trials) if not chosen or trial.number != chosen.trial.number]
    for state in ("pruned", "fail", "complete"):
        shown = [trial for trial in trials if trial.state == state]
        if shown:
            _curves(figure, shown, state if state != "fail" else "failed", COLOURS[state], 1.2)
            figure.data[-1].opacity = 0.75
        if shown and state == "pruned":
            figure.add_scatter(
                x=[trial.curve[-1][0] for trial in shown],
                y=[trial.curve[-1][1] for trial in shown],
                mode="markers",
                marker={"symbol": "x-thin", "size": 6, "line": {"color": COLOURS[state], "width": 1.5}},
                name="where it was pruned",
                text=[f"trial {trial.label}, pruned at epoch {trial.curve[-1][0]:g}" for trial in shown],
                hovertemplate=f"%{{text}}<br>{ACCURACY}",
            )
    if chosen:
        _curves(figure, [chosen.trial], literal(chosen.name), BEST_COLOUR, 3)
    return figure


def _curves(figure: go.Figure, trials: list[TrialRecord], name: str, colour: str, width: float) -> None:
    # One line with gaps: a thousand separate lines take a browser seconds to draw.
    points = [(*point, trial.label) for trial in trials for point in [*trial.curve, (None, None)]]
    figure.add_scatter(
        x=[epoch for epoch, _, _ in points],
        y=[accuracy for _, accuracy, _ in points],
        customdata=[label for _, _, label in points],
        hovertemplate=f"trial %{{customdata}}, epoch %{{x}}<br>{ACCURACY}",
        mode="lines",
        name=name,
        line={"color": colour, "width": width},
    )


def timeline(analysis: Analysis) -> go.Figure:
    """One row per worker, with a bar for each attempt at a trial."""
    unit, name = clock(analysis.seconds)
    figure = figure_of(f"{name} since the first trial started", "", barmode="overlay")
    shown = {trial.number for trial in drawn_trials(analysis.trials)}
    spells = [each for each in analysis.spells if each.retrained or each.outcome == "running" or each.trial in shown]
    for kind, colour in KINDS.items():
        bars = [each for each in spells if _kind(each) == kind]
        if bars:
            figure.add_bar(
                base=[each.start / unit for each in bars],
                x=[(each.end - each.start) / unit for each in bars],
                y=[literal(each.worker) for each in bars],
                text=[_attempt(each) for each in bars],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
                orientation="h",
                name=kind,
                showlegend=True,
                marker={"color": colour, "line": {"color": "white", "width": 0.5 if len(spells) < FINE else 0}},
            )
    by_start = sorted(spells, key=lambda each: each.start)
    workers = list(dict.fromkeys(literal(each.worker) for each in by_start))
    figure.update_yaxes(categoryorder="array", categoryarray=workers[::-1])
    return figure.update_layout(height=min(900, 130 + BAR * len(workers)), bargap=0.25)


def _attempt(spell: Spell) -> str:
    of = f"{'finalists, ' if spell.retrained else ''}trial {spell.trial}: {spell.outcome}"
    return f"{of}<br>{span(spell.start, spell.end)}<br>{literal(spell.worker)}"


def _kind(spell: Spell) -> str:
    if spell.outcome in ("complete", "pruned", "paused", "running"):
        return "finalists" if spell.retrained and spell.outcome == "complete" else spell.outcome
    return "returned to the queue, or failed"


def importances(analysis: Analysis) -> go.Figure:
    """Importance of each hyperparameter by each method, as shares of 1."""
    assert analysis.importances is not None  # `drawers` checks it
    return _shares(analysis.importances, "importance (share of 1)")


def early_importances(analysis: Analysis) -> go.Figure:
    """Importance for the accuracy at the last step that all trials reached."""
    early = analysis.importances and analysis.importances.early
    assert early  # `drawers` checks it
    return _shares(early.importances, f"importance (share of 1)<br>after {early.when}")  # two lines, to fit a phone


def _shares(found: Importances, title: str) -> go.Figure:
    figure = figure_of(title, "", barmode="group")
    order = sorted(next(iter(found.methods.values())).items(), key=lambda item: item[1].share)
    for method, shares in found.methods.items():
        figure.add_bar(
            x=[shares[name].share for name, _ in order],
            y=[name for name, _ in order],
            error_x={
                "type": "data",
                "array": [shares[name].high - shares[name].share for name, _ in order],
                "arrayminus": [shares[name].share - shares[name].low for name, _ in order],
                "thickness": 1.5,
            },
            text=[shares[name].as_words() for name, _ in order],
            textposition="none",
            hovertemplate=f"%{{y}}<br>{method} %{{text}}<extra></extra>",
            orientation="h",
            name=method,
            showlegend=True,
            marker_color=METHODS[method],
        )
    return figure.update_layout(height=130 + 42 * len(order), xaxis_rangemode="tozero", legend_traceorder="normal")


def training_curves(analysis: Analysis) -> go.Figure:
    """Accuracy of the best trials by epoch, on the training images and on the scored images."""
    figure = figure_of("epoch", "accuracy", yaxis_tickformat=SHARE, xaxis_rangemode="tozero")
    complete = [trial for trial in analysis.trials if trial.state == "complete" and trial.history]
    best = sorted(complete, key=lambda trial: trial.accuracy or 0.0, reverse=True)[:BEST_TRIALS]
    chosen = analysis.chosen
    others = [trial for trial in best if not chosen or trial.number != chosen.trial.number]
    answer = [chosen.trial] if chosen and chosen.trial.history else []
    for trial in [*answer, *others]:
        group, colour = "the best trials", COLOURS["complete"]
        if chosen and trial is chosen.trial:
            group, colour = literal(chosen.name), BEST_COLOUR
        for images, column, dash in (
            (analysis.summary.score_on, "accuracy", "solid"),
            ("training", "train_accuracy", "dot"),
        ):
            name = f"{group}, {images}"
            figure.add_scatter(
                x=[epoch.epoch for epoch in trial.history],
                y=[getattr(epoch, column) for epoch in trial.history],
                hovertemplate=f"trial {trial.label}, {images}, epoch %{{x}}<br>{ACCURACY}",
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=name not in {trace.name for trace in figure.data},
                line={"color": colour, "dash": dash, "width": 2},
            )
    return figure


def best_so_far(comparison: Comparison, by: str) -> go.Figure:
    """Best complete trial so far of each study, by `epochs` or by `seconds`."""
    title = "epochs trained" if by == "epochs" else "minutes since the first trial started"
    figure = figure_of(title, "accuracy", yaxis_tickformat=SHARE)
    for answer in comparison.answers:
        progress = answer.progress
        x = progress.epochs if by == "epochs" else [seconds / 60 for seconds in progress.seconds]
        name = literal(answer.study)
        reached = [f"{plain(each)} epochs" if by == "epochs" else duration(60 * each) for each in x]
        figure.add_scatter(
            x=x,
            y=progress.best,
            text=[f"{name}: best of {each}" for each in reached],
            hovertemplate=f"%{{text}}<br>{ACCURACY}",
            mode="lines+markers",
            line={"shape": "hv"},
            name=name,
        )
    return figure.update_layout(colorway=[*THREE, RUNNING, COLOURS["pruned"]])


def _scored(trial: TrialRecord) -> bool:
    return trial.accuracy is not None


def _accuracy(trial: TrialRecord) -> float:
    return trial.accuracy or 0.0


def _hover(trial: TrialRecord) -> str:
    return f"trial {trial.label}: {literal(assignments(trial.params))}"


SHARES = {"tickformat": SHARE, "tickangle": 0, "nticks": 4}
ROW, LINE = 26, 13  # pixels per row, and per further line of its label


def finalists(analysis: Analysis) -> go.Figure:
    """Accuracy of each finalist in the search and over its fresh seeds."""
    assert analysis.standings is not None  # `drawers` checks it
    rows = analysis.standings.finalists[::-1]
    names = [wording.called(finalist) for finalist in rows]
    figure = figure_of(f"{analysis.summary.score_on} accuracy", "", xaxis=SHARES)
    searched = [(finalist.search, name) for finalist, name in zip(rows, names, strict=True) if finalist.search]
    figure.add_scatter(
        x=[accuracy for accuracy, _ in searched],
        y=[name for _, name in searched],
        mode="markers",
        name="in the search",
        marker={"color": COLOURS["pruned"], "symbol": "circle-open", "size": 11, "line": {"width": 2}},
        hovertemplate="%{y} in the search: %{x:.2%}<extra></extra>",
    )
    best = analysis.standings.winner
    chosen = [finalist is best for finalist in rows]
    _dots(figure, [finalist.retrained.accuracy for finalist in rows], names, "retrained, 95 % interval", chosen)
    return figure.update_layout(height=180 + 2 * ROW * len(rows))


def ranking(analysis: Analysis) -> go.Figure:
    """Mean accuracy of each configuration with its interval."""
    rows = analysis.ranking[::-1]
    figure = figure_of(f"{analysis.summary.score_on} accuracy", "", xaxis=SHARES)
    labels = [wrapped(row.label) for row in rows]
    chosen = [row is analysis.answer for row in rows]
    _dots(figure, [row.accuracy for row in rows], labels, "mean, 95 % interval", chosen)
    return figure.update_layout(height=120 + (ROW + LINE * (lines_of(labels) - 1)) * len(rows))


def _dots(
    figure: go.Figure, estimates: list[Estimate], names: list[str], legend: str, chosen: Sequence[bool] = ()
) -> None:
    """Add means with intervals; `chosen`: which of them to highlight."""
    colours = [BEST_COLOUR if answer else COLOURS["complete"] for answer in chosen]
    figure.add_scatter(
        x=[each.mean for each in estimates],
        y=names,
        error_x={
            "type": "data",
            "array": [_above(each) for each in estimates],
            "arrayminus": [_below(each) for each in estimates],
        },
        text=[f"{percent(each.mean)} ({wording.interval(each)}), n = {each.n}" for each in estimates],
        hovertemplate="%{y}<br>%{text}<extra></extra>",
        mode="markers",
        name=legend,
        marker={"color": colours or COLOURS["complete"], "size": 9},
    )


def _above(estimate: Estimate) -> float:
    return 0 if estimate.high is None else estimate.high - estimate.mean


def _below(estimate: Estimate) -> float:
    return 0 if estimate.low is None else estimate.mean - estimate.low


def writeup(analysis: Analysis) -> go.Figure:
    """Accuracy by epoch: the write-up's three training runs, and ours with intervals."""
    assert analysis.comparison is not None  # `drawers` checks it
    figure = figure_of("epoch", "test accuracy", yaxis_tickformat=SHARE, xaxis_dtick=1)
    for epochs, colour in zip(WRITEUP_ACCURACY, THREE, strict=True):
        rows = [row for row in analysis.comparison.by_epoch if row.epochs == epochs]
        x = [int(row.name) for row in rows]
        figure.add_scatter(
            x=x,
            y=[row.theirs for row in rows],
            mode="lines+markers",
            name=f"write-up, {epochs} epochs",
            hovertemplate=f"write-up, epoch %{{x}} of {epochs}<br>{ACCURACY}",
            line={"color": colour, "dash": "dot"},
        )
        figure.add_scatter(
            x=x,
            y=[row.ours.mean for row in rows],
            error_y={
                "type": "data",
                "array": [_above(row.ours) for row in rows],
                "arrayminus": [_below(row.ours) for row in rows],
            },
            mode="lines+markers",
            name=f"ours, {epochs} epochs",
            text=[wording.interval(row.ours) for row in rows],
            hovertemplate=f"ours, epoch %{{x}} of {epochs}<br>%{{y:.2%}} (%{{text}})<extra></extra>",
            line={"color": colour},
        )
    return figure


def answers(comparison: Comparison) -> go.Figure:
    """Accuracy of each study's selected configuration with its interval."""
    rows = comparison.answers[::-1]
    figure = figure_of("accuracy", "", xaxis=SHARES)
    _dots(figure, [row.accuracy for row in rows], [wrapped(row.study) for row in rows], "mean, 95 % interval")
    return figure.update_layout(height=180 + 2 * ROW * len(rows))
