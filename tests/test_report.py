"""The report of a study: its numbers, its figures and its page."""

import re
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from fmnist import data
from fmnist.data import CLASSES, DataSet, split
from fmnist.evaluation import evaluate
from search import queue
from search.definition import StudyDefinition
from search.finalists import Finalist, Standings
from search.ranking import Configuration, rank
from search.record import checkpoint_of, history_of
from search.report import estimates, figures, write, write_comparison
from search.report.analysis import Analysis, analyse
from search.report.cost import costs
from search.report.findings import findings
from search.report.importance import Importance
from search.report.page import render
from search.report.writeup import compare
from search.statistics import estimate
from search.storage import open_storage
from search.study import Place, open_study
from search.url import default_url
from search.worker import WorkerSettings, work
from tests import test_writeup
from tests.conftest import definition
from tests.test_findings import ended, evidence_of

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def study(folder: Path, tiny: DataSet, tiny_folder: Path) -> optuna.Study:
    """A finished study of twelve real trials whose name and description are hostile."""
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
    queue.top_up(study, defined, 12)
    work(WorkerSettings(url, EVIL, tiny_folder), lambda: False)
    return study


@pytest.fixture(scope="module")
def analysis(study: optuna.Study, folder: Path, tiny_folder: Path) -> Analysis:
    return analyse(study, folder / "s", lambda: data.load(tiny_folder))


def standings_of(again: list[Configuration], trained: int = 6, *, tested: bool = False) -> Standings:
    """The first was trial 7 of the search and the default was pruned there."""
    finalists = [Finalist(None if one.is_default else 7, None if one.is_default else 0.95, one) for one in again]
    test = estimate([0.88, 0.89]) if tested else None
    return Standings(
        "s", "validation" if tested else "test", trained, 6, 0, False, finalists, Path("best.pt"), 0.91, test
    )


GRID = definition(sampler="grid", seeds=3, space={"filters": {"choices": [2, 3, 4]}})  # the default has 4


def ranking_of(*values: tuple[int, list[float]]) -> list[Configuration]:
    return rank(GRID, [ended(GRID, one, filters=filters) for filters, accuracies in values for one in accuracies])


BETTER = ranking_of((2, [0.90, 0.91, 0.92]), (4, [0.80, 0.81, 0.82]))
TIE = ranking_of((2, [0.90, 0.91, 0.92]), (4, [0.89, 0.91, 0.90]))


def repeated(analysis: Analysis, ranking: list[Configuration]) -> Analysis:
    """The same for a grid with seeds."""
    definition = analysis.definition | {"seeds": 3}
    return replace(analysis, definition=definition, ranking=ranking, standings=None, importances=None)


@pytest.fixture(scope="module")
def beside(analysis: Analysis) -> Analysis:
    """The same for a study that is compared with the write-up."""
    found = compare(test_writeup.EPOCHS, test_writeup.trials(test_writeup.REVERSED))
    return replace(repeated(analysis, BETTER), comparison=found)


def text_of(page: str) -> str:
    """A page's words."""
    without = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", without).split())


def test_numbers_are_those_of_the_study(study: optuna.Study, analysis: Analysis, tiny: DataSet) -> None:
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


def test_importance_is_measured_where_trials_are_enough_for_a_method(analysis: Analysis) -> None:
    found = analysis.importances
    assert found.ped_anova is not None
    assert found.ped_anova.keys() == {"filters", "learning_rate"}
    assert sum(one.share for one in found.ped_anova.values()) == pytest.approx(1)
    assert (found.best, found.finished, found.complete) == (5, 12, 12)
    assert found.fanova is None
    assert len(found.missing) == 1


def test_findings_are_those_of_its_trials(study: optuna.Study, analysis: Analysis) -> None:
    defined = StudyDefinition.model_validate(analysis.definition)
    assert analysis.findings == findings(evidence_of(defined, study.trials, importances=analysis.importances))
    assert any(finding.about == "importance" for finding in analysis.findings)


def test_figures_draw_the_numbers(study: optuna.Study, analysis: Analysis) -> None:
    complete, _, best = figures.history(analysis).data
    assert list(complete.y) == [trial.accuracy for trial in analysis.trials]
    assert list(best.y) == [max(complete.y[: i + 1]) for i in range(12)]
    assert [list(curve.y) for curve in figures.intermediate_values(analysis).data] == [
        [value for _, value in trial.curve] for trial in analysis.trials
    ]
    assert analysis.network is not None
    assert [list(row) for row in figures.confusion(analysis).data[0].z] == analysis.network.confusion
    ranked = sorted(study.trials, key=lambda trial: trial.value or 0.0, reverse=True)[:5]
    scored, training = (figures.training_curves(analysis).data[start::2] for start in (0, 1))
    assert sorted(map(list, (line.y for line in scored))) == sorted(
        [epoch.accuracy for epoch in history_of(trial)] for trial in ranked
    )
    assert sorted(map(list, (line.y for line in training))) == sorted(
        [epoch.train_accuracy for epoch in history_of(trial)] for trial in ranked
    )


def test_importances_are_drawn_with_their_intervals(analysis: Analysis) -> None:
    shares = {"a": Importance(0.7, 0.5, 0.8), "b": Importance(0.3, 0.2, 0.5)}
    both = replace(analysis.importances, ped_anova=shares, fanova={**shares, "a": Importance(0.6, 0.6, 0.9)})
    for bars, drawn in zip(
        figures.importances(replace(analysis, importances=both)).data, (both.ped_anova, both.fanova), strict=True
    ):
        assert drawn is not None
        for name, share, more, less in zip(bars.y, bars.x, bars.error_x.array, bars.error_x.arrayminus, strict=True):
            assert (share, share + more, share - less) == pytest.approx(
                (drawn[name].share, drawn[name].high, drawn[name].low)
            )
        assert set(bars.y) == {"a", "b"}


def test_costs_are_drawn_with_their_fronts(analysis: Analysis) -> None:
    sizes = definition(space={"filters": {"low": 1, "high": 30}})
    trials = [ended(sizes, 0.9 - n % 4 / 10, seconds=20.0 - n, filters=n + 1) for n in range(8)]
    found = costs(sizes, rank(sizes, trials))
    drawn = figures.costs(replace(analysis, costs=found)).data
    assert len(drawn) == 2 * 4  # all the costs differ
    for all_of_it, front, name in zip(drawn[::2], drawn[1::2], ("seconds", "epoch_seconds"), strict=False):
        assert sorted(zip(all_of_it.x, all_of_it.y, strict=True)) == sorted(
            (getattr(cost, name), cost.accuracy) for cost in found
        )
        expected = sorted((getattr(cost, name), cost.accuracy) for cost in found if name in cost.fronts)
        assert list(zip(front.x, front.y, strict=True)) == expected
        assert 0 < len(expected) < len(found)


def test_finalists_are_drawn_where_they_were_and_where_they_are(analysis: Analysis) -> None:
    before, again = estimates.finalists(replace(analysis, standings=standings_of(BETTER))).data
    assert dict(zip(before.y, before.x, strict=True)) == {"trial 7": 0.95}  # the default had nothing to show
    assert dict(zip(again.y, again.x, strict=True)) == pytest.approx({"trial 7": 0.91, "the default": 0.81})
    assert list(again.error_x.array) == pytest.approx(
        [(one.accuracy.high or 0.0) - one.accuracy.mean for one in BETTER[::-1]]
    )


def test_a_ranking_is_drawn_the_best_on_top(analysis: Analysis) -> None:
    (dots,) = estimates.ranking(repeated(analysis, BETTER)).data
    assert list(dots.y) == ["filters=4 (default)", "filters=2"]
    assert list(dots.x) == pytest.approx([0.81, 0.91])


def test_the_write_up_is_drawn_beside_ours(beside: Analysis) -> None:
    assert beside.comparison is not None
    drawn = {line.name: line for line in estimates.writeup(beside).data}
    assert len(drawn) == 6
    for epochs in (3, 5, 7):
        rows = [row for row in beside.comparison.by_epoch if row.epochs == epochs]
        assert list(drawn[f"write-up, {epochs} epochs"].y) == [row.theirs for row in rows]
        ours = drawn[f"ours, {epochs} epochs"]
        assert list(ours.x) == list(range(1, epochs + 1))
        assert list(ours.y) == [row.ours.mean for row in rows]
        assert list(ours.error_y.array) == [(row.ours.high or 0.0) - row.ours.mean for row in rows]


def test_the_page_is_whole_offline_and_escapes_what_users_wrote(analysis: Analysis, beside: Analysis) -> None:
    for each in (analysis, replace(beside, standings=standings_of(BETTER))):
        page = render(each)
        assert EVIL not in page
        assert "&lt;script&gt;alert(1)" in page
        without_plotly = re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)
        assert len(without_plotly) < len(page) / 5
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", without_plotly)
        assert not re.search(r"@import|url\(", without_plotly)
        assert page.count("<script>/**") == 1
        assert len(page.encode()) < 6e6


def test_a_search_has_its_sections(analysis: Analysis) -> None:
    page = render(analysis)
    for section in (
        "What the numbers say",
        "Which hyperparameters matter",
        "Optimisation history",
        "Accuracy by epoch",
        "Training and test accuracy of the best trials",
        "What accuracy costs",
        "Classification report",
    ):
        assert section in page
    for name in ("history", "intermediate_values", "importances", "training_curves", "costs", "confusion"):
        assert f'id="{name}"' in page
    for name in ("finalists", "ranking", "writeup"):
        assert f'id="{name}"' not in page
    for finding in analysis.findings:
        assert finding.text in page
    assert analysis.summary.best is not None
    assert f"{100 * analysis.summary.best.value:.2f} %" in page
    assert "the best of 12 finished trials" in text_of(page)
    assert "chosen on the test images that scored it" in text_of(page)
    assert "trial-000" in page


def test_a_search_with_finalists_says_who_won_and_what_shrank(analysis: Analysis) -> None:
    page = render(replace(analysis, standings=standings_of(BETTER)))
    text = text_of(page)
    assert 'id="finalists"' in page
    assert (
        "Winner: trial 7, 91.00 % test accuracy, mean of 3 fresh seeds (95 % interval 88.52–93.48 %): filters=2. "
        "It was chosen among 2 on the same test images."
    ) in text
    assert "corrected for 1 comparison)" in text
    assert "7 95.00 % 91.00 % 88.52–93.48 % 4.00 3 winner +10.00 filters=2" in text
    assert "default - 81.00 % 78.52–83.48 % - 3 10.00 behind filters=4" in text
    assert "Which hyperparameters matter" in text
    assert "trainings are finished" not in text
    tie = text_of(render(replace(analysis, standings=standings_of(TIE))))
    assert "Too close to call between it and the default." in tie
    tested = text_of(render(replace(analysis, standings=standings_of(BETTER, tested=True))))
    assert "On the test images, which nothing was chosen by: 88.50 % (" in tested


def test_finalists_that_are_not_all_trained_have_no_winner_yet(analysis: Analysis) -> None:
    some = ranking_of((2, [0.95]), (4, [0.89, 0.91, 0.90]))
    text = text_of(render(replace(analysis, standings=replace(standings_of(some, trained=4), checkpoint=None))))
    assert "Ahead so far: trial 7, 95.00 % test accuracy, mean of 1 fresh seed: filters=2." in text
    assert "4 of 6 trainings are finished." in text
    assert "Best checkpoint is not chosen yet" in text
    assert not re.search(r"\bwinner\b", text)  # neither is one: of the first there is a single training


def test_a_grid_with_seeds_is_ranked(analysis: Analysis) -> None:
    page = render(repeated(analysis, BETTER))
    text = text_of(page)
    assert 'id="ranking"' in page
    assert 'id="importances"' not in page
    assert "Which hyperparameters matter" not in text
    assert "is the mean test accuracy of filters=2 on data set" in text
    assert "over 3 seeds (95 % interval 88.52–93.48 %)." in text
    assert re.search(r"filters=2 91.00 % 88.52–93.48 % 3 1.0 best \+10.00 filters=4 \(default\) 81.00 %", text)
    assert "10.00 behind" in text
    tie = text_of(render(repeated(analysis, TIE)))
    assert re.search(r"3 1.0 best \+1.00, noise filters=4 \(default\) 90.00 % 87.52–92.48 % 3 1.0 tie", tie)
    once = text_of(render(repeated(analysis, ranking_of((2, [0.95]), (4, [0.8, 0.81])))))
    assert "over 1 seed." in once
    assert not re.search(r"\d best\b", once)


def test_the_write_ups_figures_stand_beside_ours(beside: Analysis) -> None:
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


def test_the_page_of_one_trial_is_in_the_singular(tmp_path: Path, tiny: DataSet, tiny_folder: Path) -> None:
    defined = definition(defaults={"architecture": "simple", "epochs": 1, "filters": 4, "learning_rate": 0.002})
    url = default_url(tmp_path)
    study = open_study(open_storage(url, "create"), "one", defined, tiny, Place(tmp_path / "one"))
    queue.top_up(study, defined, 1)
    work(WorkerSettings(url, "one", tiny_folder), lambda: False)
    text = text_of(write(study, tmp_path / "one", tmp_path / "report.html", lambda: tiny, url).read_text())
    assert "is the test accuracy of trial 0, the best of 1 finished trial on" in text
    assert "Trials: 1 complete, 0 pruned, 0 failed" in text
    assert "there are 1 and 1." in text
    assert "by the bootstrap" not in text
    assert "What accuracy costs" not in text
    compared = write_comparison([(study, tmp_path / "one")] * 2, tmp_path / "comparison.html").read_text()
    assert 'id="by_epochs"' in compared
    assert "corrected" not in text_of(compared)


def test_it_is_written_while_nothing_is_complete_and_says_what_is_missing(
    tmp_path: Path, tiny: DataSet, tiny_folder: Path
) -> None:
    defined = StudyDefinition.model_validate({"space": {"filters": {"low": 8, "high": 32}}})
    url = default_url(tmp_path)
    study = open_study(open_storage(url, "create"), "new", defined, tiny, Place(tmp_path))
    queue.top_up(study, defined, 2)
    page = write(study, tmp_path, tmp_path / "deep" / "report.html", lambda: tiny, url).read_text()
    assert "No trial is complete yet" in page
    assert "Too little data for PED-ANOVA: it needs 10 finished trials and 5 completed ones; there are 0 and 0." in page
    assert "Too little data for fANOVA" in page


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
