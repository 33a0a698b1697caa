import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from fmnist import data
from fmnist.data import DataSet, split
from fmnist.evaluation import evaluate
from search import queue
from search.definition import StudyDefinition
from search.report import write
from search.report.analysis import Analysis, _importances, analyse
from search.report.figures import confusion, history, importances, intermediate_values
from search.report.page import render
from search.storage import open_storage
from search.study import Place, checkpoint_of, open_study
from search.url import default_url
from search.worker import WorkerSettings, work

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def study(folder: Path, tiny: DataSet, tiny_folder: Path) -> optuna.Study:
    """A finished study of twelve real trials whose name and description are hostile."""
    definition = StudyDefinition.model_validate(
        {
            "description": EVIL,
            "sampler": "random",
            "pruner": "none",
            "defaults": {"architecture": "simple", "epochs": 2, "filters": 4},
            "space": {"filters": {"low": 2, "high": 6}, "learning_rate": {"low": 1e-4, "high": 0.01, "log": True}},
        }
    )
    url = default_url(folder)
    study = open_study(open_storage(url, "create"), EVIL, definition, tiny, Place(folder / "s"))
    queue.top_up(study, definition, 12)
    work(WorkerSettings(url, EVIL, tiny_folder), lambda: False)
    return study


@pytest.fixture(scope="module")
def analysis(study: optuna.Study, folder: Path, tiny_folder: Path) -> Analysis:
    return analyse(study, folder / "s", lambda: data.load(tiny_folder))


def test_numbers_are_those_of_the_study(study: optuna.Study, analysis: Analysis, tiny: DataSet) -> None:
    assert analysis.summary.best is not None
    assert analysis.summary.best.value == study.best_value
    assert [trial.accuracy for trial in analysis.trials] == [trial.value for trial in study.trials]
    assert analysis.trials[3].curve == [
        (step / 100, value) for step, value in study.trials[3].intermediate_values.items()
    ]
    assert analysis.trials[3].curve[-1] == (2.0, study.trials[3].value)
    assert analysis.network is not None
    assert analysis.network.accuracy == study.best_value
    assert sum(map(sum, analysis.network.confusion)) == len(tiny.test)
    assert analysis.importances is not None
    assert set(analysis.importances.shares) == {"filters", "learning_rate"}
    assert abs(sum(analysis.importances.shares.values()) - 1) < 1e-9
    assert (analysis.importances.best, analysis.importances.trials) == (5, 12)


def test_importance_is_found_where_it_is(study: optuna.Study, folder: Path, tiny_folder: Path) -> None:
    """Sixty trials, half of them pruned, whose accuracy is decided by one parameter."""
    ranges = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
    draw = np.random.default_rng(0)
    trials = []
    for number in range(60):
        params = {"a": draw.random(), "b": draw.random()}
        state = TrialState.COMPLETE if number % 2 else TrialState.PRUNED
        value = params["a"] if state == TrialState.COMPLETE else params["a"] / 2
        trials.append(create_trial(state=state, value=value, params=params, distributions=ranges))
    known = analyse(study, folder / "s", lambda: data.load(tiny_folder)).summary
    counted = replace(known, trials=replace(known.trials, complete=30, pruned=30))
    found = _importances(trials, counted, {})
    assert found is not None
    assert found.shares["a"] > 0.8


def test_figures_draw_the_numbers(analysis: Analysis) -> None:
    complete, _, best = history(analysis).data
    assert list(complete.y) == [trial.accuracy for trial in analysis.trials]
    assert list(best.y) == [max(complete.y[: i + 1]) for i in range(12)]
    assert [list(curve.y) for curve in intermediate_values(analysis).data] == [
        [value for _, value in trial.curve] for trial in analysis.trials
    ]
    assert analysis.importances is not None
    bars = importances(analysis).data[0]
    assert dict(zip(bars.y, bars.x, strict=True)) == analysis.importances.shares
    assert analysis.network is not None
    assert [list(row) for row in confusion(analysis).data[0].z] == analysis.network.confusion


def test_the_page_is_whole_offline_and_escapes_what_users_wrote(analysis: Analysis) -> None:
    page = render(analysis)
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page
    without_plotly = page.replace(re.search(r"<script>/\*\*.*?</script>", page, re.DOTALL).group(), "")  # type: ignore[union-attr]
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", without_plotly)
    assert page.count("<script>/**") == 1
    for section in (
        "Which hyperparameters matter",
        "Optimisation history",
        "Accuracy by epoch",
        "Classification report",
    ):
        assert section in page
    for name in ("history", "intermediate_values", "importances", "confusion"):
        assert f'id="{name}"' in page
    assert analysis.summary.best is not None
    assert f"{100 * analysis.summary.best.value:.2f} %" in page
    assert "trial-000" in page
    assert len(page.encode()) < 6e6


def test_it_is_written_while_nothing_is_complete_and_says_what_is_missing(
    tmp_path: Path, tiny: DataSet, tiny_folder: Path
) -> None:
    definition = StudyDefinition.model_validate({"space": {"filters": {"low": 8, "high": 32}}})
    study = open_study(open_storage(default_url(tmp_path), "create"), "new", definition, tiny, Place(tmp_path))
    queue.top_up(study, definition, 2)
    page = write(study, tmp_path, tmp_path / "deep" / "report.html", lambda: tiny).read_text()
    assert "No trial is complete yet" in page
    assert "0 trials are finished and 0 of them complete; below 10 and 5 the numbers would be noise" in page


def test_a_missing_checkpoint_or_data_set_is_said_not_fatal(
    study: optuna.Study, folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    lost = analyse(study, tmp_path, lambda: data.load(tiny_folder))
    assert lost.network is None
    assert "Its checkpoint is gone." in render(lost)
    without_data = analyse(study, folder / "s", lambda: data.load(tmp_path))
    assert without_data.network is None
    assert "no train-images" in render(without_data)


def test_the_best_checkpoint_scores_as_the_report_says(study: optuna.Study, folder: Path, tiny: DataSet) -> None:
    from fmnist.checkpoint import load

    saved = load(folder / "s" / "checkpoints" / (checkpoint_of(study.best_trial) or ""))
    assert evaluate(saved.network(), split(tiny, "test").scored).accuracy == study.best_value
