"""The best checkpoint: its scores, errors and filters, with images as data URIs."""

import base64
import logging
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial
from PIL import Image
from torch.nn import functional

from fmnist.checkpoint import Checkpoint, CheckpointError, load
from fmnist.choices import is_own
from fmnist.data import CLASSES, DataSet, LabelledImages, split
from fmnist.errors import NetworkError
from fmnist.evaluation import Evaluation, classification_scores, evaluate
from fmnist.user_code import running
from search.artifacts import ArtifactError
from search.results.finalists import Finalist, Standings
from search.results.summary import Summary
from search.study.places import artifacts_of
from search.study.record import check_recorded, read_checkpoint
from search.study.store import finalists_of

log = logging.getLogger(__package__)

NEGATIVE, POSITIVE = np.array([0, 114, 178]), np.array([213, 94, 0])  # Okabe and Ito's blue and vermilion


def grey(pixels: list[list[int]]) -> str:
    """A PNG data URI of an image; pixels: rows of values from 0 to 255."""
    return _uri(np.array(pixels, dtype=np.uint8))


def diverging(weights: list[list[float]], scale: float) -> str:
    """A PNG data URI of a filter: white at 0, blue towards -scale, vermilion towards scale."""
    shares = np.clip(np.array(weights) / (scale or 1), -1, 1)[..., None]
    colours = 255 + np.abs(shares) * (np.where(shares < 0, NEGATIVE, POSITIVE) - 255)
    return _uri(colours.round().astype(np.uint8))


def _uri(pixels: np.ndarray) -> str:
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


MISTAKES = 24  # shown in the report
FILTERS = 64  # shown in the report
CONFUSED = 3  # most confused pairs of classes named in the report


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    index: among the scored images. probability: of the predicted class. pixels: 28 rows of 28 values, 0 to 255.
    """

    index: int
    true: str
    predicted: str
    probability: float
    pixels: list[list[int]]


@dataclass(frozen=True)
class Filters:
    """The first FILTERS of the `total` filters of the first convolution, each a square of weights."""

    total: int
    weights: list[list[list[float]]]


@dataclass(frozen=True)
class BestNetwork:
    """The best checkpoint: the winner's, scored on the test images; without finalists, the best trial's.

    path: file or URL. scored_on: split of the images. confused: the most frequent errors as (true class, predicted
    class, images). mistakes: the most confident of the `wrong` predictions. filters: None without a convolution.
    unrun: why the code of a user's own network did not run; the scores are then those in the checkpoint, and mistakes
    is empty.
    """

    path: str
    scored_on: str
    accuracy: float
    images: int
    classes: dict[str, dict[str, float]]
    confusion: list[list[int]]
    confused: list[tuple[str, str, int]]
    wrong: int
    mistakes: list[Mistake]
    filters: Filters | None
    hyperparameters: dict[str, Any]
    seed: int
    made_with: dict[str, Any]
    unrun: str | None = None


def best_network(
    study: optuna.Study, folder: Path, summary: Summary, standings: Standings | None, data: DataSet
) -> tuple[BestNetwork | None, str | None]:
    """Evaluate the best checkpoint; None and the reason if that is not possible."""
    try:
        if standings and standings.winner and standings.checkpoint:
            path, checkpoint = str(standings.checkpoint), load(standings.checkpoint)
            check_recorded(_copied(study, standings.winner), checkpoint, path)
            splits = split(data, "test")
        elif summary.best and summary.best.checkpoint:
            found = read_checkpoint(study.get_trials(deepcopy=False)[summary.best.number], artifacts_of(study, folder))
            if found is None:
                return None, f"the checkpoint of trial {summary.best.number} was not found."
            path, (_, checkpoint) = summary.best.checkpoint, found
            splits = split(data, checkpoint.score_on)
        else:
            reason = f"the checkpoint of trial {summary.best.number} was not found." if summary.best else None
            return None, reason or "no trial is complete yet."
    except (CheckpointError, ArtifactError, OSError) as error:  # the report is written anyway
        return None, str(error)
    return describe(checkpoint, path, splits.scored, splits.score_on), None


def _copied(study: optuna.Study, winner: Finalist) -> FrozenTrial:
    """The finalist trial whose checkpoint was published as the winner's."""
    finalist_study = finalists_of(study)
    assert finalist_study is not None  # there are standings
    return finalist_study.get_trials(deepcopy=False)[winner.retrained.trials[0]]


def describe(checkpoint: Checkpoint, path: str, scored: LabelledImages, scored_on: str) -> BestNetwork:
    """Evaluate the network of a checkpoint on images."""
    unrun = None
    try:
        network = checkpoint.network()
        if not is_own(checkpoint.hyperparameters.architecture):  # a user's `view` may need the other format
            network = network.to(memory_format=torch.channels_last)  # convolutions take half the time
        with running(checkpoint.hyperparameters.architecture):
            result = evaluate(network, scored)
    except NetworkError as error:
        unrun, scored_on, result = str(error).splitlines()[0], checkpoint.score_on, _recorded(checkpoint)
        log.warning("the report shows no errors of the network, as its code did not run: %s", unrun)
    return BestNetwork(
        path=path,
        scored_on=scored_on,
        accuracy=result.accuracy,
        images=result.total,
        classes=classification_scores(result),
        confusion=result.confusion.tolist(),
        confused=_confused(result),
        wrong=result.total - result.correct,
        mistakes=[] if unrun else _mistakes(result, scored),
        filters=_filters(checkpoint),
        hyperparameters=checkpoint.hyperparameters.model_dump(),
        seed=checkpoint.seed,
        made_with=checkpoint.made_with,
        unrun=unrun,
    )


def _recorded(checkpoint: Checkpoint) -> Evaluation:
    """The evaluation rebuilt from the confusion matrix in the checkpoint."""
    scores = checkpoint.history[-1]
    counts = torch.tensor(scores.confusion)
    pairs = counts.nonzero().repeat_interleave(counts[counts > 0], dim=0)
    logits = functional.one_hot(pairs[:, 1], len(CLASSES)).float()
    return Evaluation(scores.loss, scores.correct, scores.total, logits, labels=pairs[:, 0])


def _confused(result: Evaluation) -> list[tuple[str, str, int]]:
    counts = result.confusion.clone().fill_diagonal_(0)
    most = counts.flatten().topk(CONFUSED)
    pairs = [divmod(place, len(CLASSES)) for place in most.indices.tolist()]
    return [
        (CLASSES[true], CLASSES[predicted], count)
        for (true, predicted), count in zip(pairs, most.values.tolist(), strict=True)
        if count
    ]


def _mistakes(result: Evaluation, scored: LabelledImages) -> list[Mistake]:
    shares = result.logits.double().softmax(dim=1).max(dim=1).values
    wrong = (result.predictions != result.labels).nonzero().flatten()
    order = wrong[shares[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    return [
        Mistake(
            index=index,
            true=CLASSES[int(result.labels[index])],
            predicted=CLASSES[int(result.predictions[index])],
            probability=float(shares[index]),
            pixels=scored.images[index, 0].tolist(),
        )
        for index in order.tolist()
    ]


def _filters(checkpoint: Checkpoint) -> Filters | None:
    first = next((weight for weight in checkpoint.weights.values() if weight.dim() == 4), None)
    return None if first is None else Filters(len(first), first[:FILTERS, 0].float().tolist())
