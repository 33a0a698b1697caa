import math

import numpy as np
import torch

from fmnist.data import CLASSES, DataSet, split
from fmnist.evaluation import BATCH, as_json, classification_report, confusion_table, evaluate
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training


def test_scores_equal_an_independent_count(tiny: DataSet) -> None:
    training = Training(Hyperparameters(architecture="simple", filters=4, epochs=2), 0)
    *_, metrics = training.epochs(split(tiny, "test"))
    result = evaluate(training.scored_network, tiny.test)
    labels, logits = tiny.test.labels.numpy(), result.logits.double().numpy()
    predicted = logits.argmax(axis=1)
    log_likelihood = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(axis=1))
    assert result.correct == (predicted == labels).sum() == metrics.correct
    assert result.total == 300
    assert abs(result.loss + log_likelihood.mean()) < 1e-5
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (labels, predicted), 1)
    assert (result.confusion.numpy() == matrix).all()
    assert as_json(result)["confusion_matrix"] == matrix.tolist()
    recall = matrix[3, 3] / matrix[3].sum()
    assert abs(as_json(result)["classes"]["Dress"]["recall"] - recall) < 1e-9


def test_evaluate_uses_evaluation_mode_without_gradients(tiny: DataSet) -> None:
    network = Training(Hyperparameters(architecture="cnn", filters=2, dropout=0.5), 0).network.train()
    first, second = evaluate(network, tiny.test), evaluate(network, tiny.test)
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad


def test_texts_name_every_class(tiny: DataSet) -> None:
    result = evaluate(Training(Hyperparameters(architecture="simple", filters=2), 0).network, tiny.test)
    for text in (classification_report(result), confusion_table(result)):
        assert all(name in text for name in CLASSES)
    assert len({len(row) for row in confusion_table(result).splitlines()}) == 1


def test_each_scored_batch_is_counted(tiny: DataSet) -> None:
    training = Training(Hyperparameters(architecture="simple", filters=4, epochs=2), 0)
    for epoch, _ in enumerate(training.epochs(split(tiny, "test")), start=1):
        assert training.scored == epoch * math.ceil(len(tiny.test) / BATCH)
