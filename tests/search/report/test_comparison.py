"""Comparison of several studies."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.database.connection import open_storage
from search.database.url import default_url
from search.report.comparison import Comparison, compare
from search.report.figures import answers, best_so_far
from search.report.page import render_comparison
from search.results.intervals import Pooled
from search.study.definition import StudyDefinition
from search.study.record import ATTEMPTS
from search.study.store import finalists_name
from tests.factories import GRID, HIGH, LOW, ended, study_of, trained

BEGIN = datetime(2026, 1, 1)
EVIL = "<script>alert(1)</script>"


def timed(trial: FrozenTrial, start: float, end: float) -> FrozenTrial:
    """The trial with its times, in seconds since the study started."""
    trial.datetime_start, trial.datetime_complete = (BEGIN + timedelta(seconds=each) for each in (start, end))
    return trial


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.BaseStorage:
    return open_storage(default_url(tmp_path), "create")


WIDE = [0.70, 0.82, 0.95]


@pytest.fixture
def three(storage: optuna.storages.BaseStorage) -> Comparison:
    return compare(
        [study_of(storage, name, trained(*values)) for name, values in zip("abc", (LOW, HIGH, WIDE), strict=True)]
    )


def test_time_counts_from_the_first_attempt_of_a_resumed_trial(
    storage: optuna.storages.BaseStorage,
) -> None:
    resumed = timed(ended(GRID, 0.9), 600, 610)
    holder = {"machine": "this", "host": "here", "pid": 7, "device": "cpu", "threads": 1, "grace": 120.0}
    starts = [(BEGIN + timedelta(seconds=each)).replace(tzinfo=UTC).isoformat() for each in (0, 600)]
    resumed.set_user_attr(ATTEMPTS, [{**holder, "started": start} for start in starts])
    (answer,) = compare([study_of(storage, "a", [resumed])]).answers
    assert answer.progress.seconds == [610]


def test_progress_is_the_best_accuracy_so_far_by_total_epochs_and_by_time(storage: optuna.storages.BaseStorage) -> None:
    stopped = ended(GRID, 0.95, curve={0.5: 0.95}, state=TrialState.PRUNED)
    trials = [  # not ordered by their end
        timed(ended(GRID, 0.9), 5, 60),
        timed(ended(GRID, 0.7), 10, 40),
        timed(stopped, 0, 20),
        timed(ended(GRID, 0.8), 60, 90),
        timed(ended(GRID, 0.85), 90, 100),
    ]
    (answer,) = compare([study_of(storage, "a", trials)]).answers
    assert answer.progress.best == [0.7, 0.9, 0.9]  # with a point for the last trial
    assert answer.progress.epochs == [0.5 + 2, 0.5 + 4, 0.5 + 8]
    assert answer.progress.seconds == [40, 60, 100]
    assert answer.finished == 5


def test_failed_and_running_trials_do_not_count_as_progress(storage: optuna.storages.BaseStorage) -> None:
    failed = timed(ended(GRID, None, curve={1.0: 0.5}, state=TrialState.FAIL), 0, 10)
    running = ended(GRID, None, curve={1.0: 0.99}, state=TrialState.RUNNING)
    (answer,) = compare([study_of(storage, "a", [failed, running, timed(ended(GRID, 0.0), 20, 50)])]).answers
    assert (answer.progress.epochs, answer.progress.seconds, answer.progress.best) == ([2], [30], [0.0])


def test_an_answer_is_the_best_configuration_with_all_its_training_runs(storage: optuna.storages.BaseStorage) -> None:
    (answer,) = compare([study_of(storage, "a", trained(*LOW) + trained(*HIGH, filters=2))]).answers
    assert (answer.answer, answer.accuracies, answer.accuracy, answer.retrained) == (
        "filters=2",
        HIGH,
        Pooled([HIGH, LOW]).estimate(0),
        False,
    )


def test_the_winning_finalist_is_the_answer_if_there_is_one(storage: optuna.storages.BaseStorage) -> None:
    searched = study_of(storage, "a", trained(0.99, filters=3) + trained(0.9, filters=2))
    study_of(storage, finalists_name("a"), trained(*LOW, filters=3) + trained(*HIGH, filters=2))
    (answer,) = compare([searched]).answers
    assert (answer.answer, answer.accuracies, answer.retrained) == ("filters=2", HIGH, True)
    assert answer.progress.best[0] == 0.99  # the search alone


def test_differences_from_the_first_study_are_corrected_for_all_pairs(three: Comparison) -> None:
    pooled = Pooled([LOW, HIGH, WIDE])
    assert three.differences == [pooled.difference(1, 0), pooled.difference(2, 0)]
    assert three.differences[0] is not None
    assert three.differences[0].mean == pytest.approx(0.1)


def test_sentences_name_the_better_study_or_report_a_tie(storage: optuna.storages.BaseStorage) -> None:
    low, high, wide = (
        study_of(storage, name, trained(*values)) for name, values in (("low", LOW), ("high", HIGH), ("wide", WIDE))
    )
    found = Pooled([HIGH, LOW]).difference(0, 1)
    assert found is not None
    by = f"10.00 points ({100 * found.low:.2f} to {100 * found.high:.2f})"
    assert compare([low, high]).words == f"high is better than low by {by}."
    assert compare([high, low]).words == f"high is better than low by {by}."
    for pair in ([low, wide], [wide, low]):
        words = compare(pair).words
        assert words.startswith(f"{pair[0][0].study_name} and {pair[1][0].study_name} are statistically tied: ")
        assert "wide is ahead by 1.33 points (-" in words


def test_a_single_training_run_is_not_compared(storage: optuna.storages.BaseStorage) -> None:
    found = compare([study_of(storage, "a", trained(*LOW)), study_of(storage, "b", trained(0.99))])
    assert found.differences == [None]
    assert found.words.startswith("b and a cannot be compared: that needs several training runs")


@pytest.mark.parametrize(
    ("defined", "fingerprint"), [(GRID, "two"), (GRID.model_copy(update={"score_on": "validation"}), "one")]
)
def test_scores_on_different_images_are_not_compared(
    storage: optuna.storages.BaseStorage, defined: StudyDefinition, fingerprint: str
) -> None:
    other = study_of(storage, "b", trained(*HIGH), defined, fingerprint)
    found = compare([study_of(storage, "a", trained(*LOW)), other])
    assert found.differences == [None]
    assert found.words == "b and a were scored on different images: their accuracies are not comparable."
    assert "10.00" not in re.sub(r"<script>.*?</script>", "", render_comparison(found, ["a", "b"]), flags=re.DOTALL)


def test_a_study_without_a_complete_trial_is_left_out_and_named(storage: optuna.storages.BaseStorage) -> None:
    stopped = ended(GRID, 0.95, curve={0.5: 0.95}, state=TrialState.PRUNED)
    found = compare(
        [
            study_of(storage, "empty", []),
            study_of(storage, "a", trained(*LOW)),
            study_of(storage, "stopped", [stopped]),
            study_of(storage, "b", trained(*HIGH)),
        ]
    )
    assert [answer.study for answer in found.answers] == ["a", "b"]
    assert found.left_out == ["empty", "stopped"]
    assert found.differences == [Pooled([HIGH, LOW]).difference(0, 1)]  # one pair
    page = render_comparison(found, ["empty", "a", "stopped", "b"])
    assert "they have no complete trial yet: empty, stopped." in page


def test_the_page_of_studies_without_a_complete_trial_says_so(storage: optuna.storages.BaseStorage) -> None:
    found = compare([study_of(storage, name, []) for name in "ab"])
    assert (found.answers, found.differences) == ([], [])
    assert "None of these studies has a complete trial yet." in render_comparison(found, ["a", "b"])


def test_figures_draw_the_numbers(three: Comparison) -> None:
    (dots,) = answers(three).data
    drawn = {name: (mean, more) for name, mean, more in zip(dots.y, dots.x, dots.error_x.array, strict=True)}
    for answer in three.answers:
        assert answer.accuracy.high is not None
        expected = (answer.accuracy.mean, answer.accuracy.high - answer.accuracy.mean)
        assert drawn[answer.study] == pytest.approx(expected)
    for by, x in (
        ("epochs", [answer.progress.epochs for answer in three.answers]),
        ("seconds", [[one / 60 for one in answer.progress.seconds] for answer in three.answers]),
    ):
        lines = best_so_far(three, by).data
        assert [line.name for line in lines] == ["a", "b", "c"]
        assert [list(line.x) for line in lines] == x
        assert [list(line.y) for line in lines] == [answer.progress.best for answer in three.answers]


def test_the_page_is_self_contained_and_escapes_user_text(storage: optuna.storages.BaseStorage) -> None:
    names = [EVIL, "b", f"</script>{EVIL}"]
    found = compare(
        [study_of(storage, name, trained(*values)) for name, values in zip(names[:2], (LOW, HIGH), strict=True)]
        + [study_of(storage, names[2], [])]
    )
    page = render_comparison(found, names)
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script>/**") == 1
    without_plotly = re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", without_plotly)
    assert "b is better than &lt;script&gt;" in page
    assert "10.00 (" in without_plotly  # in the table
    for name in ("answers", "by_epochs", "by_seconds"):
        assert f'id="{name}"' in page
    assert len(page.encode()) < 2e6
