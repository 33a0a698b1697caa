"""Scores of a network: loss, accuracy, report, confusion matrix."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist.data import CLASSES, LabelledImages, standardize

BATCH = 125  # images; activations of a larger batch fall out of a CPU's cache
TIMED = 21  # batches


@dataclass(frozen=True)
class Evaluation:
    """Scores on one set of images.

    logits: (N, 10) float32, labels: (N,) int64, on the CPU. For an ensemble, and with test-time augmentation, the
    logits are log probabilities.
    """

    loss: float
    correct: int
    total: int
    logits: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def predictions(self) -> Tensor:
        """(N,) int64: the most likely class of each image."""
        return self.logits.argmax(dim=1)

    @property
    def confusion(self) -> Tensor:
        """(10, 10) int64: number of images of class row predicted as class column."""
        classes = len(CLASSES)
        return torch.bincount(self.labels * classes + self.predictions, minlength=classes**2).reshape(classes, classes)


@torch.no_grad()
def evaluate(network: nn.Module, scored: LabelledImages, on_batch: Callable[[], None] = lambda: None) -> Evaluation:
    """Score a network in evaluation mode on images that are on its device; the loss is a mean.

    Args:
        on_batch: called after each batch, to show progress.
    """
    network.eval()
    parts = []
    for images in scored.images.split(BATCH):
        parts.append(network(standardize(images)))
        on_batch()
    logits = torch.cat(parts)
    return Evaluation(
        loss=F.cross_entropy(logits, scored.labels).item(),
        correct=int((logits.argmax(dim=1) == scored.labels).sum()),
        total=len(scored),
        logits=logits.cpu(),
        labels=scored.labels.cpu(),
    )


@torch.no_grad()
def milliseconds_per_image(network: nn.Module, images: Tensor) -> float:
    """Milliseconds per image on one thread of this machine, from the fastest batch of BATCH images.

    Args:
        images: (N, 1, 28, 28) uint8, on the network's device.
    """
    network.eval()
    threads = torch.get_num_threads()
    # One thread and the fastest batch, so that the machine's other load does not distort comparisons.
    torch.set_num_threads(1)
    times = []
    try:
        for batch in images[: TIMED * BATCH].split(BATCH):
            start = time.perf_counter()
            network(standardize(batch))
            times.append((time.perf_counter() - start) / len(batch))
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(times)


def classification_report(evaluation: Evaluation) -> str:
    """scikit-learn's table of precision, recall and F1 per class."""
    return str(_report(evaluation, as_dict=False))


def classification_scores(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """The same numbers by class name: precision, recall, f1-score, support."""
    report = _report(evaluation, as_dict=True)
    return {name: report[name] for name in CLASSES}


def confusion_table(evaluation: Evaluation) -> str:
    """The confusion matrix as text: a row for each true class, a column for each predicted one."""
    head = "true / predicted"
    rows = [head + "".join(f"{index:>6}" for index in range(len(CLASSES)))]
    for index, (name, counts) in enumerate(zip(CLASSES, evaluation.confusion.tolist(), strict=True)):
        rows.append(f"{name} ({index})".rjust(len(head)) + "".join(f"{count:>6}" for count in counts))
    return "\n".join(rows)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Scores as plain values: loss, accuracy, correct, total, classes, confusion_matrix."""
    return {
        "loss": evaluation.loss,
        "accuracy": evaluation.accuracy,
        "correct": evaluation.correct,
        "total": evaluation.total,
        "classes": classification_scores(evaluation),
        "confusion_matrix": evaluation.confusion.tolist(),
    }


def _report(evaluation: Evaluation, as_dict: bool) -> Any:
    from sklearn.metrics import classification_report

    return classification_report(
        evaluation.labels.numpy(),
        evaluation.predictions.numpy(),
        labels=range(len(CLASSES)),
        target_names=CLASSES,
        output_dict=as_dict,
        digits=3,
        zero_division=0.0,
    )
