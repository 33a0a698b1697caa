"""Scores, errors and filters of the best checkpoint."""

import pytest
import torch

from fmnist.checkpoint import dump, parse
from fmnist.data import CLASSES, DataSet, split, standardize
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training
from search.report.network import FILTERS, MISTAKES, BestNetwork, describe

SMALL = {"architecture": "simple", "epochs": 1, "filters": 6, "learning_rate": 0.002}


def described(data: DataSet, **changes: object) -> tuple[BestNetwork, Training]:
    training = Training(Hyperparameters(**SMALL | changes), seed=1)
    for _ in training.epochs(split(data, "test")):
        pass
    checkpoint = parse(dump(training, "test", data), "it")
    return describe(checkpoint, "it", data.test, "test"), training


@pytest.fixture(scope="module")
def trained(tiny: DataSet) -> tuple[BestNetwork, Training]:
    return described(tiny)


def test_scores_are_those_of_the_checkpoint(trained: tuple[BestNetwork, Training], tiny: DataSet) -> None:
    found, training = trained
    assert found.accuracy == training.history[-1].accuracy
    assert found.confusion == training.history[-1].confusion
    assert (found.images, found.wrong) == (len(tiny.test), len(tiny.test) - training.history[-1].correct)
    assert found.hyperparameters == training.hyperparameters.model_dump()


def test_mistakes_are_the_most_confident_errors(trained: tuple[BestNetwork, Training], tiny: DataSet) -> None:
    found, training = trained
    with torch.no_grad():
        shares = training.scored_network.eval()(standardize(tiny.test.images)).softmax(dim=1)
    assert 0 < len(found.mistakes) <= MISTAKES
    for mistake in found.mistakes:
        assert mistake.true == CLASSES[tiny.test.labels[mistake.index]]
        assert mistake.predicted == CLASSES[shares[mistake.index].argmax()]
        assert mistake.true != mistake.predicted
        assert mistake.probability == pytest.approx(shares[mistake.index].max().item(), abs=1e-4)
        assert mistake.pixels == tiny.test.images[mistake.index, 0].tolist()
    confidence, predicted = shares.max(dim=1)
    wrong = sorted(confidence[predicted != tiny.test.labels].tolist(), reverse=True)[:MISTAKES]
    assert [mistake.probability for mistake in found.mistakes] == pytest.approx(wrong, abs=1e-4)


def test_the_most_confused_classes_are_those_of_the_confusion_matrix(trained: tuple[BestNetwork, Training]) -> None:
    found, _ = trained
    pairs = {
        (CLASSES[row], CLASSES[column]): count
        for row, counts in enumerate(found.confusion)
        for column, count in enumerate(counts)
        if row != column
    }
    assert [count for *_, count in found.confused] == sorted(pairs.values(), reverse=True)[:3]
    assert all(pairs[actual, predicted] == count for actual, predicted, count in found.confused)


@pytest.mark.parametrize(
    ("changes", "total", "side"),
    [
        ({}, 6, 5),
        ({"architecture": "cnn", "filters": 4}, 4, 3),
        ({"architecture": "resnet", "filters": 4}, 4, 3),
        ({"architecture": "transformer", "filters": 20, "blocks": 1}, 80, 4),
    ],
)
def test_the_filters_are_the_first_layers_weights(
    tiny: DataSet, changes: dict[str, object], total: int, side: int
) -> None:
    found, training = described(tiny, **changes)
    weights = next(each for each in training.scored_network.parameters() if each.ndim == 4)
    assert found.filters.total == total == len(weights)
    assert found.filters.weights == weights[:FILTERS, 0].tolist()
    assert {len(row) for each in found.filters.weights for row in each} == {side}
