"""Figures and note of a report in the dashboard."""

import json
import random
from dataclasses import replace

import optuna
import pytest
from optuna_dashboard import get_note, save_note

from fmnist.data import CLASSES
from search.database.connection import open_storage
from search.formatting import GREY
from search.report.analysis import Analysis
from search.report.cost import Cost
from search.report.dashboard_plots import END_OF_OURS, MOST, custom_plots, note, publish, with_note
from search.report.importance import Early, Importance, Importances
from search.report.network import BestNetwork, Filters
from search.report.provenance import Provenance
from search.results.finalists import Standings
from search.results.summary import BestTrial, Summary, TrialCounts
from search.study.places import ARTIFACTS, FOLDER, KEEP, KEY, StudyError
from search.study.store import DATA, DEFINITION, VERSIONS
from tests.factories import BETTER, contrast, definition, report_standings, with_ranking

LABEL = "learning_rate=0.001234 batch_size=128 filters=24 dropout=0.1234 label_smoothing=0.04321 augmentation=0.1234"


def cost(number: int, draw: random.Random) -> Cost:
    fronts = frozenset({"seconds"} if number % 100 == 0 else ())
    accuracy, seconds = draw.uniform(0.8, 0.93), draw.uniform(20, 200)
    return Cost(
        label=LABEL,
        trial=number,
        accuracy=accuracy,
        low=None,
        high=None,
        seconds=seconds,
        parameters=100_000 + number,
        epochs=7,
        epoch_seconds=seconds / 7,
        multiply_adds=10_000_000 + number,
        fronts=fronts,
    )


@pytest.fixture
def analysis() -> Analysis:
    """A search of a thousand complete trials over eight hyperparameters."""
    draw = random.Random(0)
    shares = {
        f"hyperparameter_{number}": Importance(draw.random(), draw.random(), draw.random()) for number in range(8)
    }
    network = BestNetwork(
        path="studies/s/best one.pt",
        scored_on="test",
        accuracy=0.9312,
        images=10_000,
        classes={},
        confusion=[[draw.randint(0, 1000) for _ in CLASSES] for _ in CLASSES],
        confused=[],
        wrong=0,
        mistakes=[],
        filters=Filters(0, []),
        hyperparameters={},
        seed=1,
        made_with={},
    )
    origin = Provenance(
        written="",
        by="",
        runs=[],
        database="",
        options=" --storage postgresql://me@db/studies",
        password_note=None,
        data_options=" --data-dir data",
        study_file="",
        versions={},
        workers={},
        data="digits",
        fingerprint="",
        checksums={},
        architecture="cnn",
        network=None,
    )
    best = BestTrial(
        7, None, 0.93, {"learning_rate": 0.004, "filters": 24}, "studies/s/checkpoints/trial-00007-epoch-7.pt"
    )
    return Analysis(
        summary=Summary("s", "test", TrialCounts(1000, 0, 0, 0, 0), best, []),
        description="",
        data="digits",
        definition=definition().model_dump(mode="json"),
        trials=[],
        spells=[],
        epochs=0.0,
        epochs_retrained=0.0,
        paused=0.0,
        findings=[],
        standings=None,
        ranking=[],
        comparison=None,
        importances=Importances(shares, shares, 200, 1000, 1000, []),
        landscape=None,
        costs=[cost(number, draw) for number in range(1000)],
        network=network,
        missing=None,
        provenance=origin,
    )


def test_figures_of_a_large_study_stay_small(analysis: Analysis) -> None:
    plots = custom_plots(analysis)
    assert plots.keys() == {"importances", "costs", "confusion"}
    assert {name: len(plot.to_json()) // 1000 for name, plot in plots.items()} == pytest.approx(
        {"importances": 3, "costs": 14, "confusion": 2}, abs=2
    )


def test_an_early_importance_replaces_the_other_and_is_labelled(analysis: Analysis) -> None:
    assert analysis.importances is not None
    end = custom_plots(analysis)["importances"]
    assert "after" not in end.layout.title.text
    early = Early(0.25, 0, False, replace(analysis.importances, ped_anova=None))
    few = replace(analysis, importances=replace(analysis.importances, fanova=None, early=early))
    plots = custom_plots(few)
    assert plots.keys() == custom_plots(analysis).keys()
    shown = plots["importances"]
    assert "after a quarter of an epoch" in shown.layout.title.text
    assert [bar.name for bar in shown.data] == ["fANOVA"]
    assert f"“{shown.layout.title.text}”" in note(few)
    assert "What helps early may not help in the end" in note(few)
    assert f"“{end.layout.title.text}”" in note(analysis)


def test_of_many_configurations_the_best_and_the_pareto_front_are_drawn(analysis: Analysis) -> None:
    configurations, front = custom_plots(analysis)["costs"].data
    assert set(front.x) == {cost.seconds for cost in analysis.costs[::100]}
    assert len(configurations.x) == MOST + len([number for number in range(MOST, 1000) if number % 100 == 0])
    assert set(configurations.x) >= {cost.seconds for cost in analysis.costs[:MOST]}


def test_figures_have_a_title_and_leave_their_size_to_the_dashboard(analysis: Analysis) -> None:
    plots = custom_plots(analysis)
    assert all(plot.layout.title.text and plot.layout.height is None for plot in plots.values())
    assert plots["confusion"].layout.title.text == "Confusion matrix of the best network: 93.12 % test accuracy"


def test_figures_are_readable_in_the_dashboards_light_and_dark_mode(analysis: Analysis) -> None:
    for name, plot in custom_plots(analysis).items():
        assert plot.layout.paper_bgcolor == plot.layout.plot_bgcolor == "rgba(0,0,0,0)", name
        for axis in (plot.layout.xaxis, plot.layout.yaxis):
            assert axis.linecolor == plot.layout.font.color == GREY
        for bars in plot.select_traces({"type": "bar"}):
            assert bars.error_x.color == GREY
    grey = str([int(GREY[place : place + 2], 16) for place in (1, 3, 5)])
    for background in ("255, 255, 255", "30, 30, 30"):
        assert contrast(grey, background) > 4


def test_figures_without_numbers_are_not_drawn(analysis: Analysis) -> None:
    assert custom_plots(replace(analysis, importances=None, costs=analysis.costs[:1], network=None)) == {}


def test_the_note_has_the_result_and_commands_with_their_options(analysis: Analysis) -> None:
    text = note(analysis)
    assert "Trial 7: 93.00 % test accuracy with learning\\_rate=0.004 filters=24." in text
    assert "selected as the best of 1000 on the same test images" in text
    commands = text.split("```")[1].splitlines()[1:]
    where = "--storage postgresql://me@db/studies"
    assert commands == [
        f"fmnist-search best s {where}",
        f"fmnist-search report s {where} --data-dir data",
        "fmnist-search predict 'studies/s/best one.pt' IMAGE.png",
        f"fmnist-search reproduce s 7 {where} --data-dir data",
    ]


def test_the_note_explains_why_the_dashboards_importances_may_differ(analysis: Analysis) -> None:
    title = custom_plots(analysis)["importances"].layout.title.text
    assert f"their order may differ from those in “{title}”" in note(analysis)
    none = Importances(None, None, 0, 0, 0, [])
    assert "importance" not in note(replace(analysis, importances=none))
    assert "importance" not in note(replace(analysis, importances=None))


def test_the_note_has_the_result_of_the_finalists_if_there_are_any(analysis: Analysis) -> None:
    standings: Standings = report_standings(BETTER)
    text = note(replace(analysis, standings=standings))
    assert "91.00 % test accuracy, mean of 3 fresh seeds" in text
    assert f"reproduce s.finalists {standings.winner.retrained.trials[0]} " in text
    ranked = note(with_ranking(analysis, BETTER))
    assert "Best: filters=2, 91.00 %" in ranked
    assert f"reproduce s {BETTER[0].trials[0]} " in ranked
    nothing = replace(analysis, summary=replace(analysis.summary, best=None), network=None)
    assert "No trial is complete yet." in note(nothing)
    assert "reproduce" not in note(nothing)


def test_names_in_the_note_are_escaped(analysis: Analysis) -> None:
    best = replace(analysis.summary.best, checkpoint="[a](b)*c*`<i>`")  # type: ignore[type-var]  # there is one
    text = note(replace(analysis, summary=replace(analysis.summary, study="a; rm b", best=best)))
    assert r"\[a\](b)\*c\*\`\<i\>\`" in text
    assert "fmnist-search best 'a; rm b' " in text


def test_user_text_stays_below_the_note() -> None:
    once = with_note("## Result\n\nfirst", "mine")
    assert once == f"## Result\n\nfirst\n\n{END_OF_OURS}\n\nmine"
    twice = with_note("## Result\n\nsecond", f"{once}\nmore of mine\n")
    assert twice == f"## Result\n\nsecond\n\n{END_OF_OURS}\n\nmine\nmore of mine"
    assert with_note("third", with_note("second", "")) == f"third\n\n{END_OF_OURS}"


def test_publishing_again_replaces_figures_and_note(analysis: Analysis, url: str) -> None:
    storage = open_storage(url, "create")
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    with pytest.raises(StudyError, match="was not created by this version"):
        publish(analysis, url)
    data = {"name": "digits", "fingerprint": "0" * 64}
    for name, value in {KEY: "key", FOLDER: "s", ARTIFACTS: None, KEEP: 5, DATA: data, VERSIONS: {}}.items():
        study.set_user_attr(name, value)
    study.set_user_attr(DEFINITION, {})
    save_note(study, "mine")
    publish(analysis, url)
    assert get_note(study) == with_note(note(analysis), "mine")
    first = storage.get_study_system_attrs(study._study_id)
    publish(replace(analysis, costs=analysis.costs[::200]), url)
    second = storage.get_study_system_attrs(study._study_id)
    parts = sorted(key for key in second if key.startswith("dashboard:plot_data:costs:"))
    assert parts == sorted(key for key in first if key.startswith("dashboard:plot_data:costs:"))
    assert len(json.loads("".join(second[part] for part in parts))["data"][0]["x"]) == 5
    assert get_note(study) == with_note(note(analysis), "mine")
