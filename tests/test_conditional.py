"""A search under conditions, from its study file to its report and the dashboard."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from fmnist.data import DataSet
from search.database.connection import lock, open_storage
from search.database.url import default_url
from search.queue import tickets
from search.report import space_figures
from search.report.analysis import Analysis, analyse
from search.report.page import render
from search.report.provenance import as_toml
from search.results.finalists import define, place_of
from search.study import definition as definitions
from search.study.parameters import applying, is_complete
from search.study.places import Place
from search.study.store import open_study
from search.worker.loop import WorkerSettings, work
from tests.conftest import NEEDS_CHROMIUM, Command
from tests.factories import CONDITIONAL, definition
from tests.search.dashboard.serving import serving

DEFINED = definition(finalists=1, **CONDITIONAL)
TRIALS = 24


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, tiny: DataSet, tiny_folder: Path) -> Path:
    """The output folder of the finished search "s"; its finalists have one of two seeds."""
    folder = tmp_path_factory.mktemp("out")
    url = default_url(folder)
    settings, storage = WorkerSettings(url, "s", tiny_folder), open_storage(url, "create")
    with lock(url):
        study = open_study(storage, "s", DEFINED, tiny, Place(folder / "s"))
        tickets.top_up(study, DEFINED, TRIALS)
    work(settings, lambda: False)
    chosen = define(study, 2, 1)
    assert chosen is not None
    with lock(url):
        again = open_study(storage, "s.finalists", chosen, tiny, place_of(study, folder / "s"))
        tickets.top_up(again, chosen, None)
    work(settings, lambda: False)
    return folder


@pytest.fixture(scope="module")
def study(output: Path) -> optuna.Study:
    return optuna.load_study(storage=open_storage(default_url(output)), study_name="s")


@pytest.fixture(scope="module")
def analysis(study: optuna.Study, output: Path, tiny: DataSet) -> Analysis:
    return analyse(study, output / "s", lambda: tiny)


def test_each_trial_has_exactly_the_hyperparameters_searched_at_its_point(study: optuna.Study) -> None:
    trials = study.get_trials(deepcopy=False)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    assert all(is_complete(DEFINED.space, trial.params) for trial in trials)
    for trial in trials:
        tables = {name: applying(DEFINED.space, name, trial.params) for name in trial.params}
        assert all(table is not None and table.has(trial.params[name]) for name, table in tables.items())
    simple = {"architecture", "optimizer", "learning_rate", "batch_size", "filters"}
    kinds = {frozenset(trial.params) for trial in trials}
    assert kinds == {
        frozenset(simple | further) for further in (set(), {"momentum"}, {"residual"}, {"momentum", "residual"})
    }


def test_the_first_trials_are_the_default_and_the_starting_points(study: optuna.Study) -> None:
    first, second, third = study.get_trials(deepcopy=False)[:3]
    assert first.params["architecture"] == "simple"
    assert (second.params["architecture"], second.params["filters"], second.params["residual"]) == ("cnn", 3, False)
    assert (third.params["optimizer"], third.params["momentum"], third.params["learning_rate"]) == ("sgd", 0.9, 0.05)


def test_status_and_best_show_marks_of_starting_points(study: optuna.Study, output: Path, invoke: Command) -> None:
    best = study.best_trial
    status = invoke("status", "s", "--output", str(output))
    mark = {0: " (default)", 1: " (start 1)", 2: " (start 2)"}.get(best.number, "")
    assert f"Best so far: trial {best.number}{mark}, " in status.stdout
    assert json.loads(invoke("status", "s", "--output", str(output), "--json").stdout)["best"]["mark"] == (
        mark.strip(" ()") or None
    )


def test_the_report_shows_each_hyperparameter_where_it_is_searched(analysis: Analysis) -> None:
    page = render(analysis)
    rows = re.findall(r'<tr><th scope="row">(\w+)</th><td>([^<]*)</td><td>([^<]*)</td><td class="words">([^<]*)<', page)
    table = {name: (best, default, searched) for name, best, default, searched in rows if name in DEFINED.space}
    assert table.keys() == DEFINED.space.keys()
    assert table["momentum"][1:] == ("-", "0.5 to 0.95, where optimizer is sgd")
    assert table["filters"][1:] == ("4", "3 to 8, where architecture is simple; 2, 3, 4, where architecture is cnn")
    assert table["residual"][2] == "false, true, where architecture is cnn"
    assert table["batch_size"] == (str(analysis.best["batch_size"]), "64", "32, 64")
    for name, (best, _, _) in table.items():
        assert (best == "-") == (name not in analysis.best)
    assert "<figcaption>0.5 to 0.95, where optimizer is sgd</figcaption>" in page
    assert "<figcaption>3 to 8, where architecture is simple; 2, 3, 4, where architecture is cnn</figcaption>" in page


def test_a_slice_has_the_trials_that_searched_it(analysis: Analysis) -> None:
    drawn = {name: space_figures.slice_over(analysis, name).data[0] for name in DEFINED.space}
    for name, points in drawn.items():
        with_it = [trial for trial in analysis.trials if name in trial.params]
        assert list(points.y) == [trial.accuracy for trial in with_it]
    assert 0 < len(drawn["momentum"].x) < TRIALS == len(drawn["filters"].x)
    assert set(drawn["residual"].x) <= {"false", "true"}


def test_lines_pass_below_the_axes_of_missing_hyperparameters(analysis: Analysis) -> None:
    figure = space_figures.parallel_coordinates(analysis)
    by_label = {trial.label: trial for trial in analysis.trials}
    names = [*DEFINED.space, "accuracy"]
    seen = set()
    for group in figure.data:
        for place, height, label in zip(group.x, group.y, group.customdata, strict=True):
            if place is not None and names[place] != "accuracy":
                has = names[place] in by_label[label].params
                assert (0 <= height <= 1) == has
                assert has or figure.layout.yaxis.range[0] < height < 0
                seen.add((names[place], has))
    assert {("momentum", True), ("momentum", False), ("learning_rate", True)} <= seen
    assert ("learning_rate", False) not in seen
    missing = {names[int(note.x)] for note in figure.layout.annotations if note.text == "–"}
    assert missing == {"momentum", "residual"}


def test_conditional_importance_is_measured_among_trials_under_the_condition(analysis: Analysis) -> None:
    found = analysis.importances
    assert found is not None
    assert found.ped_anova is not None
    assert found.ped_anova.keys() == {"architecture", "optimizer", "learning_rate", "batch_size", "filters"}
    assert sum(importance.share for importance in found.ped_anova.values()) == pytest.approx(1)
    assert found.conditional.keys() == {"momentum", "residual"}
    for name, conditional in found.conditional.items():
        assert conditional.finished == sum(name in trial.params for trial in analysis.trials)
    page = render(analysis)
    assert "Conditional hyperparameters, measured over the trials that searched them" in page
    for row in (
        f"momentum</th><td>{found.conditional['momentum'].finished}</td>",
        '<td class="words">optimizer is sgd</td>',
    ):
        assert row in page


def test_the_study_file_in_the_report_is_the_definition(analysis: Analysis, tmp_path: Path) -> None:
    file = tmp_path / "again.toml"
    file.write_text(analysis.provenance.study_file)
    assert definitions.read(file) == DEFINED
    assert as_toml(DEFINED) == analysis.provenance.study_file


def test_finalists_keep_conditions_and_marks(study: optuna.Study, analysis: Analysis) -> None:
    assert analysis.standings is not None
    for finalist in analysis.standings.finalists:
        assert is_complete(DEFINED.space, finalist.retrained.params)
        assert finalist.retrained.params == study.get_trials(deepcopy=False)[finalist.trial or 0].params
    marks = {finalist.trial: finalist.mark for finalist in analysis.standings.finalists}
    named = {0: "default", 1: "start 1", 2: "start 2"}
    assert marks == {number: named.get(number or 0) for number in marks}
    assert 0 in marks


def test_optuna_and_its_dashboard_read_the_study_as_it_is(study: optuna.Study, output: Path) -> None:
    stored = study.get_trials(deepcopy=False)
    with serving(output) as site:
        shown = site.study()
    assert {each["name"] for each in shown["union_search_space"]} == DEFINED.space.keys()
    for trial, record in zip(shown["trials"], stored, strict=True):
        assert {each["name"] for each in trial["params"]} == record.params.keys()
    shared = {"architecture", "optimizer", "learning_rate", "batch_size", "filters"}
    assert optuna.importance.get_param_importances(study).keys() >= shared


@NEEDS_CHROMIUM
def test_the_space_of_the_report_in_a_browser(analysis: Analysis, tmp_path: Path, browser: Any) -> None:
    (tmp_path / "report.html").write_text(render(analysis))
    page, wrong = browser.new_page(viewport={"width": 1200, "height": 900}), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#parallel_coordinates .main-svg")
    for name in DEFINED.space:
        assert page.locator(f"#slice_{name} .points path").count() > 0
    assert page.locator("#parallel_coordinates .annotation", has_text="–").count() == 2
    page.close()
    assert wrong == []


@pytest.fixture
def conditional_file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "conditional.toml"
    file.write_text(as_toml(definition(finalists=0, **CONDITIONAL)))
    return file


def test_a_run_says_which_networks_it_searches_and_gp_refuses(conditional_file: Path, command: Command) -> None:
    refused = command("run", conditional_file, "--sampler", "gp")
    assert refused.returncode == 2
    rule = "gp does not support conditions, and space.momentum has one; choose tpe, random, qmc or grid"
    assert refused.stderr == f"Error: {conditional_file}: sampler: {rule}\n"
    run = command("run", conditional_file, "--trials", "3", "--workers", "1")
    assert (run.returncode, run.stderr) == (0, "")
    assert "3 trials of simple and cnn on" in run.stdout
    added = command("enqueue", "conditional", "--set", "filters=8", "--set", "architecture=simple")
    assert added.returncode == 0, added.stderr
    wrong = command("enqueue", "conditional", "--set", "filters=8")
    assert "Error: --set filters=8: filters is searched only where" in wrong.stderr
