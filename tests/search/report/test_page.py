"""Numbers, figures and page of a report."""

import html
import io
import json
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from markupsafe import escape
from plotly.offline import get_plotlyjs_version
from rich.console import Console

from fmnist import data
from fmnist.data import CLASSES, DataSet, split
from fmnist.evaluation import evaluate
from search import formatting
from search.console.status import show_finalists
from search.database.connection import open_storage
from search.database.url import default_url
from search.queue import tickets
from search.report import as_json, figures, space_figures, write, write_comparison
from search.report.analysis import Analysis, analyse
from search.report.cost import COSTS, costs
from search.report.findings import NEXT, findings
from search.report.history import Spell
from search.report.importance import Early, Importance, Importances
from search.report.network import grey
from search.report.page import SECTIONS, drawers, plotly_js, render
from search.report.style import in_sight, logarithmic, plain, span, stepped
from search.report.writeup import compare
from search.results.ranking import rank
from search.study.definition import StudyDefinition
from search.study.places import Place
from search.study.record import checkpoint_of, history_of
from search.study.store import Run, open_study
from search.worker.loop import WorkerSettings, work
from tests.factories import (
    BETTER,
    EPOCHS,
    FINALISTS,
    REVERSED,
    TIE,
    definition,
    ended,
    evidence_of,
    ranking_of,
    report_standings,
    with_ranking,
    writeup_trials,
)

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def study(folder: Path, tiny: DataSet, tiny_folder: Path) -> optuna.Study:
    """A finished study of twelve real trials with a hostile name and description."""
    defined = StudyDefinition.model_validate(
        {
            "description": EVIL,
            "sampler": "random",
            "pruner": "none",
            "defaults": {"architecture": "simple", "epochs": 2, "filters": 4},
            "space": {"filters": {"low": 2, "high": 6}, "learning_rate": {"low": 1e-4, "high": 0.01, "log": True}},
        }
    )
    url = default_url(folder)
    study = open_study(open_storage(url, "create"), EVIL, defined, tiny, Place(folder / "s"))
    tickets.top_up(study, defined, 12)
    work(WorkerSettings(url, EVIL, tiny_folder), lambda: False)
    return study


@pytest.fixture(scope="module")
def analysis(study: optuna.Study, folder: Path, tiny_folder: Path) -> Analysis:
    return analyse(study, folder / "s", lambda: data.load(tiny_folder))


GRID = definition(sampler="grid", seeds=3, space={"filters": {"choices": [2, 3, 4]}})  # the default has 4


@pytest.fixture(scope="module")
def beside(analysis: Analysis) -> Analysis:
    """A study that is compared with the write-up."""
    found = compare(EPOCHS, writeup_trials(REVERSED))
    return replace(with_ranking(analysis, BETTER), comparison=found)


def text_of(page: str) -> str:
    """Visible text of a page."""
    without = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL).replace("&nbsp;", " ")
    return " ".join(re.sub(r"<[^>]*>", " ", without).split())


def test_numbers_match_the_study(study: optuna.Study, analysis: Analysis, tiny: DataSet) -> None:
    assert analysis.summary.best is not None
    assert analysis.summary.best.value == study.best_value
    assert [trial.accuracy for trial in analysis.trials] == [trial.value for trial in study.trials]
    assert analysis.trials[3].curve == [
        (step / 100, value) for step, value in study.trials[3].intermediate_values.items()
    ]
    assert analysis.trials[3].curve[-1] == (2.0, study.trials[3].value)
    assert analysis.trials[3].history == history_of(study.trials[3])
    assert [(epoch.epoch, epoch.accuracy) for epoch in analysis.trials[3].history] == analysis.trials[3].curve
    assert analysis.network is not None
    assert analysis.network.accuracy == study.best_value
    assert sum(map(sum, analysis.network.confusion)) == len(tiny.test)
    assert analysis.network.classes.keys() == set(CLASSES)
    assert analysis.ranking[0].accuracies == [study.best_value]
    assert [cost.accuracy for cost in analysis.costs] == [one.accuracy.mean for one in analysis.ranking]
    assert (analysis.standings, analysis.comparison, analysis.missing, analysis.repeated) == (None, None, None, False)


def test_importance_is_measured_by_each_method_with_enough_trials(analysis: Analysis) -> None:
    found = analysis.importances
    assert found.ped_anova is not None
    assert found.ped_anova.keys() == {"filters", "learning_rate"}
    assert sum(one.share for one in found.ped_anova.values()) == pytest.approx(1)
    assert (found.best, found.finished, found.complete) == (5, 12, 12)
    assert found.fanova is None
    assert len(found.missing) == 1


def test_findings_match_the_trials(study: optuna.Study, analysis: Analysis) -> None:
    defined = StudyDefinition.model_validate(analysis.definition)
    command = analysis.provenance.command("finalists", EVIL)
    evidence = evidence_of(defined, study.trials, importances=analysis.importances, finalists=command)
    assert analysis.findings == findings(evidence)
    assert any(finding.about == "importance" for finding in analysis.findings)


def test_figures_draw_the_numbers(study: optuna.Study, analysis: Analysis) -> None:
    for figure, at in (
        (figures.history(analysis), [trial.number for trial in analysis.trials]),
        (figures.history_by_time(analysis), [trial.ended for trial in analysis.trials]),
    ):
        pruned, complete, best, _ = figure.data
        assert list(pruned.x) == []
        assert list(complete.x) == at
        assert list(complete.y) == [trial.accuracy for trial in analysis.trials]
        maxima = [max(complete.y[: i + 1]) for i in range(12)]
        steps = [i for i in range(12) if i == 0 or maxima[i] > maxima[i - 1] or i == 11]
        assert list(zip(best.x, best.y, strict=True)) == [(at[i], maxima[i]) for i in steps]
    ranked = sorted(study.trials, key=lambda trial: trial.value or 0.0, reverse=True)[:5]
    scored, training = (figures.training_curves(analysis).data[start::2] for start in (0, 1))
    assert sorted(map(list, (line.y for line in scored))) == sorted(
        [epoch.accuracy for epoch in history_of(trial)] for trial in ranked
    )
    assert sorted(map(list, (line.y for line in training))) == sorted(
        [epoch.train_accuracy for epoch in history_of(trial)] for trial in ranked
    )


def curves_of(line: Any) -> dict[int, list[tuple[float, float]]]:
    """The curves in a line with gaps, by trial."""
    found: dict[int, list[tuple[float, float]]] = {}
    points = list(zip(line.x, line.y, line.customdata, strict=True))
    for x, y, number in points:
        if x is not None:
            found.setdefault(number, []).append((x, y))
    for (x, _, number), (following, _, other) in pairwise(points):
        assert number == other or None in (x, following)
    return found


def test_intermediate_values_are_drawn_with_a_cross_where_a_trial_was_pruned(analysis: Analysis) -> None:
    best = analysis.summary.best
    assert best is not None
    stopped = [trial.label for trial in analysis.trials if trial.number != best.number][:3]
    trials = [
        replace(trial, state="pruned", curve=trial.curve[:2]) if trial.label in stopped else trial
        for trial in analysis.trials
    ]
    pruned, crosses, complete, winner = figures.intermediate_values(replace(analysis, trials=trials)).data
    drawn = curves_of(pruned) | curves_of(complete) | curves_of(winner)
    assert drawn == {trial.label: trial.curve for trial in trials}
    assert set(curves_of(pruned)) == set(stopped)
    assert set(curves_of(winner)) == {best.label}
    assert list(zip(crosses.x, crosses.y, strict=True)) == [drawn[label][-1] for label in stopped]
    assert crosses.marker.symbol == "x-thin"


def test_pruned_trials_have_another_marker_and_are_never_the_best(analysis: Analysis) -> None:
    trials = [
        replace(trial, state="pruned", accuracy=0.999) if trial.number < 4 else trial for trial in analysis.trials
    ]
    pruned, complete, best, *_ = figures.history(replace(analysis, trials=trials)).data
    assert list(pruned.x) == [0, 1, 2, 3]
    assert pruned.marker.symbol != complete.marker.symbol
    assert max(best.y) == max(complete.y) < 0.999


def test_the_timeline_has_a_bar_for_each_attempt(analysis: Analysis) -> None:
    spells = [
        Spell("a:1", 0, False, 0.0, 60.0, "complete"),
        Spell("b:2", 1, False, 10.0, 30.0, "pruned"),
        Spell("b:2", 2, False, 40.0, 70.0, "given back"),
        Spell("a:1", 2, False, 80.0, 100.0, "running"),
        Spell("b:2", 0, True, 90.0, 600.0, "complete"),
    ]
    assert len(analysis.spells) == 12
    figure = figures.timeline(replace(analysis, spells=spells))
    bars = [
        (worker, round(60 * base), round(60 * (base + length)), kind.name)
        for kind in figure.data
        for worker, base, length in zip(kind.y, kind.base, kind.x, strict=True)
    ]
    assert sorted(bars) == [
        ("a:1", 0, 60, "complete"),
        ("a:1", 80, 100, "running"),
        ("b:2", 10, 30, "pruned"),
        ("b:2", 40, 70, "returned to the queue, or failed"),
        ("b:2", 90, 600, "finalists"),
    ]
    assert figure.layout.xaxis.title.text == "minutes since the first trial started"
    assert list(figure.layout.yaxis.categoryarray) == ["b:2", "a:1"]  # from the bottom up
    turned = figures.timeline(replace(analysis, spells=spells[::-1]))
    assert turned.layout.yaxis.categoryarray == figure.layout.yaxis.categoryarray


# What plotly may format itself: accuracies, epochs, names, and our texts.
PLACEHOLDERS = {"text", "customdata", "x", "y", "y:.2%", "x:.2%", "z:.2%"}


def test_hover_texts_name_the_trial_with_plain_numbers_and_units(analysis: Analysis) -> None:
    drawn = {name: draw(analysis) for name, draw in drawers(analysis).items()}
    assert {"history", "timeline", "parallel_coordinates", "slice_learning_rate", "cost_seconds"} <= drawn.keys()
    texts = {name: [str(text) for trace in figure.data for text in trace.text or ()] for name, figure in drawn.items()}
    for name, figure in drawn.items():
        for trace in figure.data:
            if trace.hoverinfo != "skip" and len(trace.x):
                assert set(re.findall(r"%\{([^}]*)\}", trace.hovertemplate)) <= PLACEHOLDERS, name
                says = [trace.hovertemplate, *map(str, trace.text if trace.text is not None else ())]
                assert name in ("importances", "early_importances", "contour") or "trial" in " ".join(says)
        assert not [text for text in texts[name] if re.search(r"\d(e-\d|[µnmkM]\b)", text)], name
    assert all(re.search(r"\d seconds per run$", text) for text in texts["cost_seconds"])
    assert all(re.search(r"\d parameters$", text) for text in texts["cost_parameters"])
    assert all(re.search(r"trial \d+: complete<br>[\d.]+ to [\d.]+ s \([\d.]+ s\)", text) for text in texts["timeline"])
    assert all(re.search(r"learning_rate 0\.\d+$", text) for text in texts["slice_learning_rate"])


@pytest.mark.parametrize(
    ("value", "expected"), [(43210, "43,210"), (0.0009178331, "0.0009178"), (0.00001, "0.00001"), (7.0, "7"), (0, "0")]
)
def test_numbers_in_hover_texts_have_no_prefixes_and_exponents(value: float, expected: str) -> None:
    assert plain(value) == expected


def test_times_of_attempts_have_units() -> None:
    assert span(0.016, 19.75) == "0.0 to 19.8 s (19.7 s)"
    assert span(65, 200) == "1 min 05 s to 3 min 20 s (2 min 15 s)"


def test_the_history_resolves_tenths_of_a_point_where_the_good_trials_are(analysis: Analysis) -> None:
    """And marks the others at the bottom, with their accuracy."""
    accuracies = [0.934, 0.933, 0.931, 0.93, 0.929, 0.92, 0.91, 0.85, 0.8, 0.79, 0.78, 0.77]
    trials = [replace(trial, accuracy=each) for trial, each in zip(analysis.trials, accuracies, strict=True)]
    for draw in (figures.history, figures.history_by_time):
        figure = draw(replace(analysis, trials=trials))
        low, high = figure.layout.yaxis.range
        assert high > 0.934
        assert high - low < 0.02  # a tenth of a point is over a twentieth of the axis
        (hidden,) = [trace for trace in figure.data if trace.name.startswith("below")]
        assert len(hidden.x) == 7
        assert all(low < y < 0.925 for y in hidden.y)
        assert [text.rpartition("<br>")[2] for text in hidden.text][:3] == ["92.00 %", "91.00 %", "85.00 %"]
    alike = [replace(trial, accuracy=0.9 + trial.number / 1e4) for trial in analysis.trials]
    assert figures.history(replace(analysis, trials=alike)).layout.yaxis.range is None


def test_slices_show_the_complete_trials_over_each_hyperparameter(analysis: Analysis) -> None:
    drawn = {name: space_figures.slice_over(analysis, name) for name in ("filters", "learning_rate")}
    for name, figure in drawn.items():
        dots, best = figure.data
        assert list(zip(dots.x, dots.y, strict=True)) == [
            (trial.params[name], trial.accuracy) for trial in analysis.trials
        ]
        assert analysis.summary.best is not None
        assert (list(best.x), list(best.y)) == ([analysis.summary.best.params[name]], [analysis.summary.best.value])
    assert drawn["learning_rate"].layout.xaxis.type == "log"
    assert drawn["filters"].layout.xaxis.type == "linear"


SPACE: dict[str, Any] = {
    "filters": {"low": 8, "high": 24, "step": 8},
    "epochs": {"low": 1, "high": 3},
    "learning_rate": {"low": 1e-4, "high": 0.01, "log": True},
    "batch_size": {"choices": [64, 32, 128]},
}


@pytest.mark.parametrize("name", SPACE)
def test_a_slice_shows_the_whole_range(analysis: Analysis, name: str) -> None:
    """Even where no trial is near the ends."""
    trials = [replace(trial, params={name: SPACE[name].get("low", 32)}) for trial in analysis.trials]
    changed = replace(analysis, trials=trials, definition=analysis.definition | {"space": {name: SPACE[name]}})
    changed = replace(changed, summary=replace(analysis.summary, best=None))
    axis = space_figures.slice_over(changed, name).layout.xaxis
    low, high = (10**end if axis.type == "log" else end for end in axis.range)
    if axis.type == "category":
        assert list(axis.categoryarray) == ["32", "64", "128"]
        assert (low, high) == (-0.5, 2.5)  # plotly indexes categories
    else:
        assert 0.7 * SPACE[name]["low"] < low < SPACE[name]["low"]
        assert SPACE[name]["high"] < high < 1.4 * SPACE[name]["high"]


def test_parallel_coordinates_connect_a_trials_values_and_accuracy(analysis: Analysis) -> None:
    complete, top, _ = space_figures.parallel_coordinates(analysis).data
    lines = curves_of(complete) | curves_of(top)
    accuracies = [trial.accuracy or 0.0 for trial in analysis.trials]
    low, high = min(accuracies), max(accuracies)
    for trial in analysis.trials:
        (_, filters), (_, rate), (_, accuracy) = lines[trial.label]
        assert filters == pytest.approx((trial.params["filters"] - 2) / 4)
        assert 1e-4 * 100**rate == pytest.approx(trial.params["learning_rate"])
        assert low + accuracy * (high - low) == pytest.approx(trial.accuracy)
    assert analysis.summary.best is not None
    assert list(curves_of(top)) == [analysis.summary.best.label]
    assert top.name == "the best"
    more = [replace(trial, mark=f"{trial.mark} {copy}") for copy in range(2) for trial in analysis.trials]
    *_, top, _ = space_figures.parallel_coordinates(replace(analysis, trials=more)).data
    assert (top.name, len(curves_of(top))) == ("the best 2", 2)


def test_the_map_is_drawn_with_its_trials(analysis: Analysis) -> None:
    surface, points, _ = space_figures.contour(analysis).data
    found = analysis.landscape
    assert found is not None
    assert surface.type == "heatmap"  # few values of filters
    assert [list(row) for row in surface.z] == found.z
    assert list(zip(points.x, points.y, strict=True)) == found.points
    ranges = replace(found, x="learning_rate", y="learning_rate", xs=[1e-4 * n for n in range(1, 26)])
    ranges = replace(ranges, ys=ranges.xs, points=[], z=[[0.5] * 25] * 25)
    assert space_figures.contour(replace(analysis, landscape=ranges)).data[0].type == "contour"


@pytest.mark.parametrize(
    ("low", "high", "step", "ticks"),
    [
        (1, 3, 1, [1, 2, 3]),
        (3, 7, 1, [3, 4, 5, 6, 7]),
        (8, 24, 8, [8, 16, 24]),
        (4, 13, 3, [4, 7, 10, 13]),
        (2, 300, 1, [50, 100, 150, 200, 250, 300]),
        (0.0, 0.5, 0.1, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (3, 3, 1, [3]),
    ],
)
def test_an_axis_with_steps_has_few_ticks_all_at_steps(
    low: float, high: float, step: float, ticks: list[float]
) -> None:
    axis = stepped(low, high, step)
    ends = [round((end - axis["tick0"]) / axis["dtick"] + shift) for end, shift in ((low, 0.499), (high, -0.499))]
    assert [axis["tick0"] + place * axis["dtick"] for place in range(ends[0], ends[1] + 1)] == pytest.approx(ticks)


@pytest.mark.parametrize(("low", "high"), [(1, 4), (1, 64), (11, 19), (8, 512)])
def test_a_logarithmic_axis_of_whole_numbers_has_ticks_at_whole_numbers(low: int, high: int) -> None:
    axis = logarithmic(low, high, whole=True)
    assert 2 < len(axis["tickvals"]) <= 6
    assert axis["ticktext"] == [str(round(tick)) for tick in axis["tickvals"]]


def test_whole_hyperparameters_have_whole_ticks(analysis: Analysis) -> None:
    """Even in small ranges; in slices, the map and costs."""
    found = replace(analysis, definition=analysis.definition | {"space": {"filters": {"low": 2, "high": 4}}})
    assert space_figures.slice_over(found, "filters").layout.xaxis.dtick == 1
    assert analysis.landscape is not None
    assert space_figures.contour(analysis).layout.xaxis.dtick == 1
    longer = definition(space={"epochs": {"low": 1, "high": 3}})
    trials = [ended(longer, 0.9, epochs=epochs) for epochs in (1, 2, 3)]
    found = replace(analysis, costs=costs(longer, rank(longer, trials), trials))
    assert space_figures.cost(found, "epochs").layout.xaxis.dtick == 1


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0003, 0.05, ["0.0003", "0.001", "0.003", "0.01", "0.03"]),
        (1e-5, 1e-1, ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        (80_000, 310_000, ["80k", "150k", "300k"]),
        (0.27, 0.43, ["0.27", "0.31", "0.35", "0.39", "0.43"]),
        (17.1, 70.2, ["20", "40", "60"]),
        (1_900_000, 2_100_000, ["1.9M", "2M", "2.1M"]),
        (0.5, 0.5, ["0.5"]),
        (3.0, 3.0, ["3"]),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_ticks(low: float, high: float, texts: list[str]) -> None:
    axis = logarithmic(low, high)
    assert axis["type"] == "log"
    assert axis["ticktext"] == texts
    assert all(0.99 * low <= tick <= 1.01 * high for tick in axis["tickvals"])


def test_outliers_are_hidden_and_the_page_says_so(analysis: Analysis) -> None:
    assert in_sight([0.9, 0.91, 0.92, 0.93] * 3) is None
    low, high = in_sight([*[0.9, 0.91, 0.92, 0.93] * 3, 0.1]) or (0.0, 0.0)
    assert 0.1 < low < 0.9
    assert 0.93 < high < 1.0
    sizes = definition(space={"filters": {"low": 1, "high": 30}})
    trials = [ended(sizes, 0.9 + n / 1000, filters=n + 1) for n in range(12)]
    for more, expected in (([], False), ([ended(sizes, 0.1, filters=20)], True)):
        text = text_of(render(replace(analysis, costs=costs(sizes, rank(sizes, trials + more), trials + more))))
        assert ("are out of view" in text) == expected


def test_importances_are_drawn_with_their_intervals(analysis: Analysis) -> None:
    shares = {"a": Importance(0.7, 0.5, 0.8), "b": Importance(0.3, 0.2, 0.5)}
    both = replace(analysis.importances, ped_anova=shares, fanova={**shares, "a": Importance(0.6, 0.6, 0.9)})
    for bars, drawn in zip(
        figures.importances(replace(analysis, importances=both)).data, (both.fanova, both.ped_anova), strict=True
    ):
        assert drawn is not None
        for name, share, more, less in zip(bars.y, bars.x, bars.error_x.array, bars.error_x.arrayminus, strict=True):
            assert (share, share + more, share - less) == pytest.approx(
                (drawn[name].share, drawn[name].high, drawn[name].low)
            )
        assert set(bars.y) == {"a", "b"}


def is_highlighted(trace: Any) -> bool:
    return formatting.BEST_COLOUR in str(trace.to_plotly_json())


@pytest.mark.parametrize("finalists", [False, True])
def test_every_figure_highlights_the_selected_configuration_only(analysis: Analysis, finalists: bool) -> None:
    if finalists:  # the winner, trial 7, is not the best single training run
        analysis = replace(analysis, standings=report_standings(BETTER))
    chosen = analysis.chosen
    assert chosen
    assert analysis.summary.best
    assert (chosen.trial.number == 7, chosen.trial.number != analysis.summary.best.number) == (finalists, finalists)
    drawn = {name: draw(analysis).data for name, draw in drawers(analysis).items()}
    found = {name: [*filter(is_highlighted, traces)] for name, traces in drawn.items()}
    highlighted = {name: traces[0] for name, traces in found.items() if traces}
    for name, traces in found.items():
        assert len(traces) <= (2 if name == "training_curves" else 1)  # training and scored images
    courses = {
        "history",
        "history_by_time",
        "intermediate_values",
        "training_curves",
        "parallel_coordinates",
        "contour",
    }
    slices = {f"slice_{name}" for name in analysis.space}
    of_trials = courses | slices
    assert of_trials <= highlighted.keys() <= of_trials | {"finalists"} | {f"cost_{name}" for name in COSTS}
    for name in of_trials:
        assert f"trial {chosen.trial.number}" in f"{highlighted[name].name} {highlighted[name].hovertemplate}"
    assert (highlighted["history"].x, highlighted["history"].y) == ((chosen.trial.number,), (chosen.trial.accuracy,))
    assert highlighted["history_by_time"].x[0] == pytest.approx(chosen.trial.ended)
    assert highlighted["slice_filters"].x == (chosen.trial.params["filters"],)
    curve = curves_of(highlighted["intermediate_values"])[chosen.trial.label]
    assert curve == chosen.trial.curve
    if finalists:
        dots = highlighted["finalists"]
        assert [
            name for name, colour in zip(dots.y, dots.marker.color, strict=True) if colour == formatting.BEST_COLOUR
        ] == ["trial 7"]


def test_the_table_of_costs_has_the_selected_configuration_even_off_the_front(analysis: Analysis) -> None:
    worst = min(analysis.ranking, key=lambda one: one.accuracy.mean)
    standings = report_standings([replace(BETTER[0], params=worst.params), BETTER[1]])
    shown = replace(analysis, standings=standings)
    cost = shown.answer_cost
    assert cost
    assert cost.accuracy == worst.accuracy.mean
    row = re.search(r'<tr class="chosen"><th scope="row">trial (\d+)</th>', render(shown).partition('id="cost"')[2])
    assert row
    assert int(row[1]) == worst.trials[0] == cost.trial


EARLY = Early(
    0.25,
    0,
    without_epochs=True,
    importances=Importances(
        None, {"filters": Importance(0.7, 0.6, 0.8), "learning_rate": Importance(0.3, 0.2, 0.4)}, 0, 50, 50, []
    ),
)


def test_an_early_importance_is_drawn_and_labelled(analysis: Analysis) -> None:
    assert analysis.importances is not None
    assert "early_importances" not in drawers(analysis)
    early = replace(analysis, importances=replace(analysis.importances, ped_anova=None, early=EARLY))
    drawn = drawers(early)
    assert "importances" not in drawn
    figure = drawn["early_importances"](early)
    assert "after a quarter of an epoch" in figure.layout.xaxis.title.text
    assert list(figure.data[0].x) == [0.3, 0.7]
    assert list(figure.data[0].y) == ["learning_rate", "filters"]
    page = text_of(render(early))
    section = page.split(SECTIONS["importance"])[-1].split(SECTIONS["course"])[0]
    assert "For the accuracy after a quarter of an epoch" in section
    assert "filters 0.70 0.60–0.80" in section
    assert "optuna-dashboard" in section
    assert "For the last accuracy of each trial" not in section
    both = text_of(render(replace(analysis, importances=replace(analysis.importances, early=EARLY))))
    last, quarter = "For the last accuracy of each trial", "For the accuracy after a quarter of an epoch"
    assert both.index(last) < both.index(quarter)


def test_epochs_of_search_and_finalists_are_shown_separately(analysis: Analysis) -> None:
    assert "epochs trained 24 wall time" in text_of(render(analysis))
    page = text_of(render(replace(analysis, epochs=122.5, epochs_retrained=60.0)))
    assert "epochs trained 62.5 in the search, 60 in the finalists wall time" in page


def test_error_bars_of_accuracies_end_at_1(analysis: Analysis) -> None:
    near = ranking_of((2, [1.0, 0.99, 0.9]), (4, [0.8, 0.9, 0.95]))
    figure = figures.ranking(with_ranking(analysis, near))
    *_, dots = figure.data
    ends = [mean + above for mean, above in zip(dots.x, dots.error_x.array, strict=True)]
    assert max(ends) == pytest.approx(1.0)
    assert dots.error_x.arrayminus[-1] > dots.error_x.array[-1] > 0


def test_costs_are_drawn_with_their_pareto_fronts(analysis: Analysis) -> None:
    sizes = definition(space={"filters": {"low": 1, "high": 30}})
    trials = [ended(sizes, 0.9 - n % 4 / 10, seconds=20.0 - n, filters=n + 1) for n in range(8)]
    found = costs(sizes, rank(sizes, trials), trials)
    with_costs = replace(analysis, costs=found, ranking=[])
    names = [name for name in COSTS if f"cost_{name}" in drawers(with_costs)]
    assert names == [name for name in COSTS if name != "epochs"]  # all have the same epochs
    for name in names:
        dots, front = space_figures.cost(with_costs, name).data
        assert sorted(zip(dots.x, dots.y, strict=True)) == sorted(
            (getattr(cost, name), cost.accuracy) for cost in found
        )
        expected = sorted((getattr(cost, name), cost.accuracy) for cost in found if name in cost.fronts)
        assert list(zip(front.x, front.y, strict=True)) == expected
        assert 0 < len(expected) < len(found)


def test_finalists_are_drawn_before_and_after_retraining(analysis: Analysis) -> None:
    searched, retrained = figures.finalists(replace(analysis, standings=report_standings(BETTER))).data
    assert dict(zip(searched.y, searched.x, strict=True)) == {"trial 7": 0.95}  # the default was pruned
    assert dict(zip(retrained.y, retrained.x, strict=True)) == pytest.approx({"trial 7": 0.91, "the default": 0.81})
    assert list(retrained.error_x.array) == pytest.approx(
        [(one.accuracy.high or 0.0) - one.accuracy.mean for one in BETTER[::-1]]
    )


def test_a_ranking_is_drawn_with_the_best_on_top(analysis: Analysis) -> None:
    (dots,) = figures.ranking(with_ranking(analysis, BETTER)).data
    assert list(dots.y) == ["filters=4 (default)", "filters=2"]
    assert list(dots.x) == pytest.approx([0.81, 0.91])


def test_the_write_up_is_drawn_with_our_training_runs(beside: Analysis) -> None:
    assert beside.comparison is not None
    drawn = {line.name: line for line in figures.writeup(beside).data}
    assert len(drawn) == 6
    for epochs in (3, 5, 7):
        rows = [row for row in beside.comparison.by_epoch if row.epochs == epochs]
        assert list(drawn[f"write-up, {epochs} epochs"].y) == [row.theirs for row in rows]
        ours = drawn[f"ours, {epochs} epochs"]
        assert list(ours.x) == list(range(1, epochs + 1))
        assert list(ours.y) == [row.ours.mean for row in rows]
        assert list(ours.error_y.array) == [(row.ours.high or 0.0) - row.ours.mean for row in rows]


def test_the_page_is_self_contained_and_escapes_user_text(analysis: Analysis, beside: Analysis) -> None:
    for each in (analysis, replace(beside, standings=report_standings(BETTER))):
        page = render(each)
        assert EVIL not in page
        assert "&lt;script&gt;alert(1)" in page
        without_plotly = re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)
        assert len(without_plotly) < len(page) / 5
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", without_plotly)
        assert not re.search(r"@import|url\(", without_plotly)
        assert page.count("<script>/**") == 1
        assert len(page.encode()) < 2e6
        drawn = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
        assert drawn is not None
        assert "<" not in drawn[1]  # it cannot end the script element
        assert json.loads(drawn[1]).keys() >= {"history"}


def _plain(text: str) -> str:
    # Tags leave spaces.
    return "".join(text.split())


def headings(page: str) -> list[tuple[int, str]]:
    """Levels and texts of the headings, in order."""
    return [(int(level), text_of(title)) for level, title in re.findall(r"<h(\d)[^>]*>(.*?)</h\1>", page, re.DOTALL)]


def test_the_sections_are_in_order(analysis: Analysis) -> None:
    page = render(analysis)
    (first, *_), *others = headings(page)
    assert first == 1
    assert [title for level, title in others if level == 2] == list(SECTIONS.values())
    levels = [level for level, _ in headings(page)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))  # no level is skipped
    for name in SECTIONS:
        assert page.count(f'id="{name}"') == page.count(f'href="#{name}"') == 1
    for name in (
        *("history", "history_by_time", "intermediate_values", "timeline", "importances", "training_curves"),
        *("slice_filters", "slice_learning_rate", "parallel_coordinates", "contour"),
        *("cost_seconds", "cost_parameters"),
    ):
        assert page.count(f'id="{name}"') == 1
        assert f'"{name}":{{"data"' in page
    for name in ("finalists", "ranking", "writeup"):
        assert f'id="{name}"' not in page
    text = text_of(page)
    for finding in analysis.findings:
        assert _plain(str(escape(finding.text)).replace("`", "")) in _plain(text)
    assert analysis.summary.best is not None
    assert f"{100 * analysis.summary.best.value:.2f} %" in page
    assert "This is a single training run (one seed), selected as the best of 12 on the same test images" in text
    assert "trial-000" in page


def test_every_image_has_an_alternative_text(analysis: Analysis) -> None:
    page = render(analysis)
    pictures = re.findall(r"<img [^>]*>", page)
    assert analysis.network is not None
    assert len(pictures) == len(analysis.network.mistakes) + len(analysis.network.filters.weights) > 0
    assert all(re.search(r'alt="[^"]{10,}"', picture) for picture in pictures)
    plots = re.findall(r'<div class="plot"[^>]*>', page)
    assert plots
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', plot) for plot in plots)


def test_the_page_shows_errors_and_filters_of_the_best_network(analysis: Analysis) -> None:
    network = analysis.network
    assert network is not None
    page = render(analysis)
    text = text_of(page)
    for mistake in network.mistakes:
        assert f"{mistake.true} predicted {mistake.predicted}, {100 * mistake.probability:.1f} %" in text
        assert grey(mistake.pixels) in page
    assert f"The {len(network.mistakes)} of {network.wrong} misclassified images" in text
    assert f"All {network.filters.total} filters of 5 x 5 weights" in text
    matrix = re.search(r'<table class="confusion">.*?</table>', page, re.DOTALL)
    assert matrix is not None
    cells = [int(cell) for cell in re.findall(r"<td[^>]*>(\d+)</td>", matrix[0])]
    assert cells == [count for row in network.confusion for count in row]
    perfect = replace(network, mistakes=[], wrong=0, confused=[])
    assert "classifies all images correctly" in render(replace(analysis, network=perfect))


def test_the_page_shows_its_provenance(analysis: Analysis) -> None:
    text = text_of(render(analysis))
    origin = analysis.provenance
    for words in (origin.fingerprint, *origin.checksums.values(), origin.database, *origin.workers):
        assert words in text
    assert "No command recorded" in text
    assert " ".join(origin.study_file.split()) in html.unescape(text)
    run = Run("2026-11-26T07:05:00+00:00", "fmnist-search run <b>", "host: cpu", "abc")
    text = text_of(render(replace(analysis, provenance=replace(origin, runs=[run]))))
    assert "Command, 2026-11-26 07:05 UTC fmnist-search run &lt;b&gt; on host: cpu; commit abc" in text


def test_the_page_shows_the_checkpoint_and_the_command_that_reproduces_it(analysis: Analysis) -> None:
    best = analysis.summary.best
    assert best is not None
    assert analysis.reproduction == analysis.provenance.command("reproduce", EVIL, best.number)
    assert str(escape(analysis.reproduction)) in render(analysis)
    assert best.checkpoint is not None
    assert best.checkpoint in render(analysis)
    alone = "Repeat its training run and check that the weights are identical"
    of_three = "Repeat the first of its 3 training runs and check that the weights are identical"
    assert alone in text_of(render(analysis))
    won = replace(analysis, standings=report_standings(BETTER))
    assert of_three in text_of(render(won))
    assert won.reproduction == analysis.provenance.command("reproduce", f"{EVIL}.finalists", BETTER[0].trials[0])
    grid = with_ranking(analysis, BETTER)
    assert of_three in text_of(render(grid))
    assert alone in text_of(render(with_ranking(analysis, ranking_of((2, [0.95]), (4, [0.8, 0.81])))))
    assert grid.reproduction == analysis.provenance.command("reproduce", EVIL, BETTER[0].trials[0])
    noted = replace(analysis.provenance, password_note="set <PGPASSWORD>")  # noqa: S106
    assert "set &lt;PGPASSWORD&gt;" in render(replace(analysis, provenance=noted))


def test_recommendations_have_their_section(analysis: Analysis) -> None:
    texts = [finding.text for finding in analysis.findings if finding.about in NEXT]
    assert texts
    section = text_of(render(analysis)).split(SECTIONS["next"])[-1]
    for text in texts:
        assert _plain(str(escape(text)).replace("`", "")) in _plain(section)
    others = [finding for finding in analysis.findings if finding.about not in NEXT]
    assert "No recommendations." in text_of(render(replace(analysis, findings=others)))


def test_the_page_of_a_large_study_is_small_and_says_what_it_leaves_out(analysis: Analysis) -> None:
    draw = random.Random(0)
    trials = [
        replace(
            analysis.trials[number % 12],
            number=number,
            state="pruned" if number % 3 else "complete",
            accuracy=draw.random(),
            curve=[(epoch / 4, draw.random()) for epoch in range(3 if number % 3 else 12)],
        )
        for number in range(4000)
    ]
    page = render(replace(analysis, trials=trials))
    assert len(page.encode()) < 3e6
    text = text_of(page)
    assert "1,000 of 4,000 trials are drawn" in text
    assert "600 of 4,000 curves are drawn" in text
    assert "are drawn:" not in text_of(render(analysis))


def test_the_javascript_is_the_version_for_which_plotly_writes_figures() -> None:
    head = plotly_js()[:200]
    assert "cartesian - minified" in head
    assert f"v{get_plotlyjs_version()}\n" in head


def test_the_numbers_are_written_as_json(
    study: optuna.Study, analysis: Analysis, folder: Path, tiny_folder: Path
) -> None:
    to, url = folder / "numbers.json", default_url(folder)
    numbers = json.loads(write(study, folder / "s", to, lambda: data.load(tiny_folder), url, "json").read_text())
    assert [trial["accuracy"] for trial in numbers["trials"]] == [trial.value for trial in study.trials]
    assert numbers["summary"]["best"]["value"] == study.best_value
    assert numbers["answer"]["reproduce"] == analysis.reproduction
    assert analysis.network is not None
    assert numbers["network"]["confusion"] == analysis.network.confusion
    assert {"importances", "costs", "findings", "landscape", "spells", "provenance"} <= numbers.keys()
    stored = open_storage(url).get_study_system_attrs(study._study_id)
    assert not any(key.startswith("dashboard:") for key in stored)  # only an HTML report updates the dashboard
    odd = replace(analysis, epochs=float("nan"), costs=[replace(cost, seconds=float("inf")) for cost in analysis.costs])
    assert json.loads(as_json(odd.as_json()))["epochs"] is None


def test_the_json_of_finalists_and_of_the_write_up_has_their_numbers(analysis: Analysis, beside: Analysis) -> None:
    won = json.loads(as_json(replace(analysis, standings=report_standings(BETTER)).as_json()))
    assert won["standings"]["finalists"][0]["retrained"]["accuracies"] == BETTER[0].accuracies
    assert won["answer"]["params"] == BETTER[0].params
    assert beside.comparison is not None
    compared = json.loads(as_json(beside.as_json()))["comparison"]
    assert len(compared["differences"]) == len(beside.comparison.differences) > 0


def test_the_page_shows_the_winner_and_its_change_from_the_search(analysis: Analysis) -> None:
    page = render(replace(analysis, standings=report_standings(BETTER)))
    text = text_of(page)
    assert 'id="finalists"' in page
    assert (
        "Winner: trial 7, 91.00 % test accuracy, mean of 3 fresh seeds (95 % interval 89.40–92.60 %): filters=2. "
        "It was selected from 2 finalists after 12 search trials, all scored on the same test images."
    ) in text
    assert text.count("pooled over all finalists") == 1
    assert "7 95.00 % 91.00 % 89.40–92.60 % -4.00 3 winner +10.00 filters=2" in text
    assert "default - 81.00 % 79.40–82.60 % - 3 10.00 behind filters=4" in text
    console = Console(file=io.StringIO(), width=120)
    show_finalists(console, "s", report_standings(BETTER), FINALISTS)
    assert "7 95.00 % 91.00 % 89.40–92.60 % -4.00 3 winner" in " ".join(console.file.getvalue().split())
    assert "training runs are finished" not in text
    assert "12 complete, 0 pruned; 6 finalist runs" in text
    assert "finalist runs" not in text_of(render(analysis))
    tie = text_of(render(replace(analysis, standings=report_standings(TIE))))
    assert "The default is statistically tied with it." in tie
    tested = text_of(render(replace(analysis, standings=report_standings(BETTER, tested=True))))
    assert "On the test images, which were not used for any selection: 88.50 % (" in tested


def test_there_is_no_winner_before_all_finalists_are_trained(analysis: Analysis) -> None:
    some = ranking_of((2, [0.95]), (4, [0.89, 0.91, 0.90]))
    text = text_of(render(replace(analysis, standings=replace(report_standings(some, trained=4), checkpoint=None))))
    assert "Ahead so far: trial 7, 95.00 % test accuracy, mean of 1 fresh seed: filters=2." in text
    assert "4 of 6 training runs are finished." in text
    assert "Published when all finalists are trained." in text
    assert not re.search(r"\bwinner\b", text)  # the first has a single training run


def test_a_grid_with_seeds_is_ranked(analysis: Analysis) -> None:
    page = render(with_ranking(analysis, BETTER))
    text = text_of(page)
    assert 'id="ranking"' in page
    assert 'id="importances"' not in page
    assert "Importance is not measured in studies with several seeds per configuration" in text
    assert "Mean test accuracy of filters=2 on data set" in text
    assert "over 3 seeds (95 % interval 89.40–92.60 %)." in text
    assert re.search(r"filters=2 91.00 % 89.40–92.60 % 3 1.0 best \+10.00 filters=4 \(default\) 81.00 %", text)
    assert "10.00 behind" in text
    tie = text_of(render(with_ranking(analysis, TIE)))
    assert re.search(r"3 1.0 best \+1.00, noise filters=4 \(default\) 90.00 % 88.40–91.60 % 3 1.0 tie", tie)
    once = text_of(render(with_ranking(analysis, ranking_of((2, [0.95]), (4, [0.8, 0.81])))))
    assert "over 1 seed." in once
    assert not re.search(r"\d best\b", once)


def test_the_page_compares_the_write_ups_numbers_with_ours(beside: Analysis) -> None:
    page = render(beside)
    text = text_of(page)
    assert 'id="writeup"' in page
    assert beside.comparison is not None
    first, last = (next(row for row in beside.comparison.by_epoch if row.name == name) for name in ("1", "7"))
    assert f"1 83.78 {100 * first.ours.mean:.2f} {100 * (first.ours.low or 0):.2f}–" in text
    assert f"7 86.03 {100 * last.ours.mean:.2f} {100 * (last.ours.low or 0):.2f}–" in text
    for name in CLASSES:
        assert name in text
    shirt = [row for row in beside.comparison.by_class if row.name == "Shirt"]
    assert [row.theirs for row in shirt] == [0.61, 0.49, 0.60]
    assert re.search(rf"Shirt 0.61 {shirt[0].ours.mean:.3f} \S+ 0.49 {shirt[1].ours.mean:.3f} \S+ 0.60", text)


def test_the_page_of_one_trial_uses_the_singular(tmp_path: Path, tiny: DataSet, tiny_folder: Path) -> None:
    defined = definition(defaults={"architecture": "simple", "epochs": 1, "filters": 4, "learning_rate": 0.002})
    url = default_url(tmp_path)
    study = open_study(open_storage(url, "create"), "one", defined, tiny, Place(tmp_path / "one"))
    tickets.top_up(study, defined, 1)
    work(WorkerSettings(url, "one", tiny_folder), lambda: False)
    text = text_of(write(study, tmp_path / "one", tmp_path / "report.html", lambda: tiny, url).read_text())
    assert "Test accuracy of trial 0 (default) on" in text
    assert "This is a single training run (one seed): another seed will score slightly differently." in text
    assert "Trials: 1 complete, 0 pruned, 0 failed" in text
    assert "of 1 and 1 so far." in text
    assert "bootstrapped" not in text
    assert "All configurations cost the same." in text
    compared = write_comparison([(study, tmp_path / "one")] * 2, tmp_path / "comparison.html").read_text()
    assert 'id="by_epochs"' in compared
    assert "corrected" not in text_of(compared)


def test_a_report_without_complete_trials_says_what_is_missing(
    tmp_path: Path, tiny: DataSet, tiny_folder: Path
) -> None:
    defined = StudyDefinition.model_validate({"space": {"filters": {"low": 8, "high": 32}}})
    url = default_url(tmp_path)
    study = open_study(open_storage(url, "create"), "new", defined, tiny, Place(tmp_path))
    tickets.top_up(study, defined, 2)
    page = write(study, tmp_path, tmp_path / "deep" / "report.html", lambda: tiny, url).read_text()
    assert "No trial is complete yet" in page
    assert "Too few trials for PED-ANOVA: 10 finished and 5 complete ones are needed, of 0 and 0 so far." in page
    assert "Too few trials for fANOVA" in page
    text = text_of(page)
    for words in (
        "No trial has reported an accuracy yet.",
        "No worker has started a trial yet.",
        "the search space cannot be shown",
        "costs cannot be compared",
        "No network to show: no trial is complete yet.",
        "No recommendations yet.",
    ):
        assert words in text
    assert "The search is unfinished: 0 of 2 trials done, 0 running when this report was written." in text
    assert "Plotly" not in page  # no figures, no plotly.js


def test_a_missing_checkpoint_or_data_set_is_reported(
    study: optuna.Study, folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    moved = analyse(study, tmp_path, lambda: data.load(tiny_folder))
    assert moved.network is None
    assert moved.summary.best is not None
    assert f"the checkpoint of trial {moved.summary.best.number} was not found." in render(moved)
    without_data = analyse(study, folder / "s", lambda: data.load(tmp_path))
    assert without_data.network is None
    assert "train-images-idx3-ubyte.gz not found" in render(without_data)


def test_the_best_checkpoint_reaches_the_reported_accuracy(study: optuna.Study, folder: Path, tiny: DataSet) -> None:
    from fmnist.checkpoint import load

    saved = load(folder / "s" / "checkpoints" / (checkpoint_of(study.best_trial) or ""))
    assert evaluate(saved.network(), split(tiny, "test").scored).accuracy == study.best_value
