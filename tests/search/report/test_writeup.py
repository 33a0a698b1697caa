"""Comparison with the write-up."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sklearn.metrics import f1_score

from fmnist import source
from fmnist.data import CLASSES, DataSet, fingerprint_of
from search.database.connection import open_storage
from search.database.url import default_url
from search.report.analysis import analyse
from search.report.writeup import F1, WRITEUP_ACCURACY, Comparison, compare, verdict
from search.results.intervals import Pooled, estimate
from search.study import definition as definitions
from search.study.places import Place
from search.study.record import CHECKPOINT
from search.study.store import DATA, open_study
from tests.factories import EPOCHS, REVERSED, around, confusion, ended, writeup_trial, writeup_trials


def comparison(finals: Mapping[int, Sequence[float]]) -> Comparison:
    found = compare(EPOCHS, writeup_trials(finals))
    assert found is not None
    return found


SOME = {3: around(0.86), 5: around(0.87), 7: around(0.88)}


def test_the_write_ups_numbers_are_transcribed_correctly() -> None:
    assert {epochs: [round(10_000 * value) for value in values] for epochs, values in WRITEUP_ACCURACY.items()} == {
        3: [8378, 8594, 8760],
        5: [8116, 8319, 8404, 8504, 8487],
        7: [8065, 8144, 8403, 8425, 8543, 8581, 8603],
    }
    by_class = {name: tuple(F1[epochs][place] for epochs in (3, 5, 7)) for place, name in enumerate(CLASSES)}
    assert by_class == {
        "T-shirt/top": (0.82, 0.79, 0.79),
        "Trouser": (0.98, 0.98, 0.98),
        "Pullover": (0.81, 0.75, 0.77),
        "Dress": (0.89, 0.88, 0.88),
        "Coat": (0.80, 0.73, 0.78),
        "Sandal": (0.97, 0.95, 0.94),
        "Shirt": (0.61, 0.49, 0.60),
        "Sneaker": (0.94, 0.94, 0.93),
        "Bag": (0.97, 0.96, 0.96),
        "Ankle boot": (0.95, 0.95, 0.95),
    }


def test_each_epoch_of_the_write_up_is_paired_with_our_mean_and_interval() -> None:
    found = comparison(SOME)
    assert [(row.epochs, row.name, row.theirs) for row in found.by_epoch] == [
        (epochs, str(epoch), accuracy)
        for epochs in (3, 5, 7)
        for epoch, accuracy in enumerate(WRITEUP_ACCURACY[epochs], start=1)
    ]
    for row in found.by_epoch:
        ours = [final - (row.epochs - int(row.name)) / 100 for final in SOME[row.epochs]]
        expected = estimate(ours)
        assert (row.ours.n, row.ours.mean) == (3, pytest.approx(expected.mean))
        assert (row.ours.low, row.ours.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.final(7).ours.mean == pytest.approx(0.88)
    assert found.final(3).theirs == 0.876


def test_f1_is_scikit_learns() -> None:
    matrices = [confusion(seed) for seed in range(6)]
    made = [writeup_trial(epochs, 0.85, matrices[place]) for place, epochs in enumerate((3, 3, 5, 5, 7, 7))]
    found = compare(EPOCHS, made)
    assert found is not None

    def expected(matrix: list[list[int]]) -> list[float]:
        pairs = [(a, b) for a, row in enumerate(matrix) for b, count in enumerate(row) for _ in range(count)]
        true, predicted = zip(*pairs, strict=True)
        return list(f1_score(true, predicted, labels=range(10), average=None, zero_division=0.0))

    for place, epochs in enumerate((3, 5, 7)):
        rows = [row for row in found.by_class if row.epochs == epochs]
        assert [row.name for row in rows] == list(CLASSES)
        assert [row.theirs for row in rows] == list(F1[epochs])
        pair = [expected(matrix) for matrix in matrices[2 * place : 2 * place + 2]]
        assert [row.ours.mean for row in rows] == pytest.approx([(a + b) / 2 for a, b in zip(*pair, strict=True)])
        assert [row.ours.n for row in rows] == [2] * 10


def test_differences_are_corrected_for_all_three_pairs() -> None:
    found = comparison(SOME)
    pooled, place = Pooled([SOME[3], SOME[5], SOME[7]]), {3: 0, 5: 1, 7: 2}
    pairs = ((3, 7), (7, 5), (3, 5))
    assert found.differences == {(a, b): pooled.difference(place[a], place[b]) for a, b in pairs}


def test_a_comparison_needs_two_training_runs_of_each_number_of_epochs() -> None:
    made = writeup_trials({3: around(0.86), 5: around(0.87), 7: [0.88]})
    assert compare(EPOCHS, made) is None
    assert compare(EPOCHS, [*made, writeup_trial(7, 0.88, state=TrialState.PRUNED)]) is None
    assert compare(EPOCHS, [*made, writeup_trial(7, 0.88)]) is not None
    assert compare(EPOCHS, []) is None


def test_other_networks_and_other_images_are_not_compared() -> None:
    wider = definitions.StudyDefinition.model_validate(
        EPOCHS.model_dump(mode="json") | {"grid": [], "space": EPOCHS.space | {"filters": {"choices": [8, 16]}}}
    )
    made = writeup_trials(SOME)
    same = [ended(wider, one.value, curve=dict.fromkeys(map(float, range(1, 8)), 0.5), **one.params) for one in made]
    other = [ended(wider, 0.99, epochs=epochs, filters=16) for epochs in (3, 5, 7)]
    for one in (*same, *other):
        one.user_attrs[CHECKPOINT]["confusion"] = confusion(0)
    with_others, without = compare(wider, [*other, *same]), compare(wider, same)
    assert with_others == without is not None
    assert compare(wider, other * 3) is None
    assert compare(EPOCHS.model_copy(update={"score_on": "validation"}), made) is None


HOLDS = {3: around(0.88), 7: around(0.86), 5: around(0.84)}
NOISE = {3: [0.80, 0.90, 0.85], 7: [0.81, 0.89, 0.86], 5: [0.79, 0.88, 0.87]}
PART = {3: around(0.88), 7: around(0.86), 5: around(0.8601)}


def test_the_verdict_states_that_the_order_holds() -> None:
    assert verdict(comparison(HOLDS)).startswith(
        "The write-up's order, 3 before 7 before 5 epochs, also holds in our training runs: "
        "3 epochs 88.00 %, 5 epochs 84.00 %, 7 epochs 86.00 %. "
    )


def test_the_verdict_states_which_differences_are_reversed() -> None:
    text = verdict(comparison(REVERSED))
    assert "does not hold: with several seeds 7 epochs are 4.00 points better than 3 (" in text
    assert "; 5 epochs are 2.00 points better than 3 (" in text
    pooled = Pooled([REVERSED[3], REVERSED[5], REVERSED[7]])
    for found in (pooled.difference(2, 0), pooled.difference(2, 1)):  # the second confirms the write-up
        assert found is not None
        assert f"({100 * found.low:.2f} to {100 * found.high:.2f})" in text
    assert "; 7 epochs are 2.00 points better than 5 (" in text


def test_the_verdict_states_that_the_order_is_not_significant() -> None:
    text = verdict(comparison(NOISE))
    assert "is not significant in our training runs (3 epochs 85.00 %, 5 epochs 84.67 %, 7 epochs 85.33 %)." in text
    assert "better than" not in text


def test_the_verdict_states_which_differences_are_significant() -> None:
    text = verdict(comparison(PART))
    assert "is only partly significant in our training runs" in text
    assert ": 3 epochs are 2.00 points better than 7 (" in text
    assert "; 3 epochs are 1.99 points better than 5 (" in text
    assert "7 epochs are" not in text


@pytest.mark.parametrize("finals", [HOLDS, REVERSED, NOISE, PART])
def test_each_verdict_states_the_write_ups_own_spread(finals: Mapping[int, Sequence[float]]) -> None:
    """After one epoch: 83.78, 81.16 and 80.65; at the end 87.60, 86.03 and 84.87."""
    text = verdict(comparison(finals))
    assert "differ by 3.13 points (standard deviation 1.68)" in text


def test_only_a_study_on_fashion_mnist_is_compared_with_the_write_up(tiny: DataSet, tmp_path: Path) -> None:
    storage = open_storage(default_url(tmp_path), "create")
    study = open_study(storage, "s", EPOCHS, tiny, Place(tmp_path / "s"))
    study.add_trials(writeup_trials(SOME))
    real = {"name": "Fashion-MNIST", "fingerprint": fingerprint_of(source.CHECKSUMS)}
    compared = {}
    for data in ({"name": tiny.name, "fingerprint": tiny.fingerprint}, real | {"fingerprint": "0"}, real):
        study.set_user_attr(DATA, data)
        found = analyse(study, tmp_path / "s", lambda: tiny)
        compared[data["fingerprint"]] = found.comparison is not None
        assert compared[data["fingerprint"]] == any(finding.about == "write-up" for finding in found.findings)
    assert compared == {tiny.fingerprint: False, "0": False, real["fingerprint"]: True}


def test_intervals_of_shares_stay_within_0_and_1() -> None:
    matrices = [confusion(seed) for seed in range(6)]
    finals = {3: [0.99, 0.5], 5: [0.02, 0.5], 7: [1.0, 0.6]}
    trials = [writeup_trial(epochs, one, matrices[0]) for epochs, values in finals.items() for one in values]
    found = compare(EPOCHS, trials)
    assert found is not None
    assert {found.final(3).ours.high, found.final(7).ours.high} == {1.0}
    assert found.final(5).ours.low == 0.0
    for row in (*found.by_epoch, *found.by_class):
        assert 0 <= (row.ours.low or 0) <= (row.ours.high or 0) <= 1
