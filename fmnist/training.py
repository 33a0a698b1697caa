"""One training run as an iterator of epochs that the caller drives.

    training = Training(Hyperparameters(), seed=0)
    for metrics in training.epochs(splits):
        print(metrics.accuracy)

After a short warm-up the learning rate falls with the inverse square root of the images seen. Scores are of an
exponential moving average of weights and batch-norm statistics (Polyak and Juditsky, 1992). Nothing depends on the
number of epochs, so a run of ten epochs starts exactly like runs of three and five, and trials of different length can
be compared at the same epoch.

All randomness in a quarter of an epoch comes from the seed and the quarter's number, so a run that is restored from its
state resumes bit-exactly on the same machine, device and thread count.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist.architectures import build
from fmnist.augmentation import augment
from fmnist.choices import Tta, is_own
from fmnist.data import LabelledImages, Splits, standardize
from fmnist.device import Precision, default_precision
from fmnist.dry_run import dry_run
from fmnist.errors import ExpectedError
from fmnist.evaluation import evaluate
from fmnist.hyperparameters import Hyperparameters
from fmnist.optimizer import AveragedOptimizer
from fmnist.own_network import OwnNetwork, load
from fmnist.seeds import derive
from fmnist.tta import applied, with_tta
from fmnist.user_code import each

WARMUP_STEPS = 100  # gradient steps until the learning rate reaches its peak
DECAY_HORIZON = 120_000  # images after which the decay is 1 / sqrt(2)
AVERAGE_HORIZON = 32_768  # images: time constant of the weights' moving average
CHUNK = 16  # batches that are augmented in one call
QUARTERS = 4  # per epoch
EARLY = (1, 2)  # quarters of the first epoch after which hopeless runs can be recognized


class Diverged(ExpectedError):
    """The training loss is infinite or NaN."""


@dataclass(frozen=True)
class EpochMetrics:
    """Scores at one point of a training run.

    epoch: passes over the training images so far, a multiple of 1/4.
    train_loss, train_accuracy: means over the batches since the previous scores, with
        dropout and augmentation.
    loss, correct, total: of the averaged weights on the scored images.
    seconds: wall time since the previous scores, including evaluation.
    confusion: (10, 10) number of scored images of class row predicted as class column.
    """

    epoch: float
    train_loss: float
    train_accuracy: float
    loss: float
    correct: int
    total: int
    seconds: float
    confusion: list[list[int]]

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


class Training:
    """A training run: network, moving average of its weights, optimizer and history.

    Args:
        hyperparameters: the configuration.
        seed: 0 or more; determines the initial weights and every random draw.
        device: of the network and the images; the CPU if None.
        precision: of the network's products; `default_precision` of the device if None.
        own: the user's own network if already loaded; otherwise it is loaded by name.
        tta: "mirror" averages each prediction with that of the mirror image, "auto" only if the augmentation flips.
            Affects scores, not weights.

    Raises:
        NetworkError: the user's own network cannot be loaded, or cannot be trained.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        seed: int,
        device: torch.device | None = None,
        precision: Precision | None = None,
        own: OwnNetwork | None = None,
        tta: Tta = "auto",
    ) -> None:
        self.hyperparameters = hyperparameters
        self.tta = applied(tta, hyperparameters)
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.precision = precision or default_precision(self.device)
        self.history: list[EpochMetrics] = []
        self.quarters = 0
        self.steps = 0
        self.scored = 0  # batches, in all evaluations
        self.own = own or (load(hyperparameters.architecture) if is_own(hyperparameters.architecture) else None)
        if self.own:
            dry_run(self.own, hyperparameters.network, self.precision)
        self.network, self.averaged = self._first_network(), self._first_network()
        self.optimizer = AveragedOptimizer(self.network, self.averaged, hyperparameters)

    def _first_network(self) -> nn.Module:
        with _seeded(self.device, derive(self.seed, "weights")):
            if self.own:  # keeps its memory format: in channels_last x.view(len(x), -1) would fail
                return self.own.build(self.hyperparameters.network).to(self.device)
            network = build(self.hyperparameters)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    @property
    def finished(self) -> bool:
        return self.quarters == self.hyperparameters.epochs * QUARTERS

    @property
    def scored_network(self) -> nn.Module:
        """The network with averaged weights and its test-time augmentation."""
        return with_tta(self.averaged, self.tta)

    def epochs(self, splits: Splits, *, early: bool = False) -> Iterator[EpochMetrics]:
        """Train from the current state to the last epoch; yields after each epoch.

        Args:
            early: also yield within the first epoch, after the quarters in EARLY.

        Raises:
            Diverged: the loss became infinite or NaN.
            NetworkError: the user's own network failed.
        """
        return each(self.hyperparameters.architecture, self._epochs(splits, early=early))

    def _epochs(self, splits: Splits, *, early: bool) -> Iterator[EpochMetrics]:
        train, scored = splits.train.to(self.device), splits.scored.to(self.device)
        while not self.finished:
            started = time.perf_counter()
            loss_sum, hits, seen = 0.0, 0, 0
            while True:
                loss, correct, images = self._train_quarter(train)
                loss_sum, hits, seen = loss_sum + loss, hits + correct, seen + images
                # A quarter may have no batches, and the score of an untrained network means nothing.
                if self.quarters % QUARTERS == 0 or (early and self.quarters in EARLY and seen):
                    break
            result = evaluate(self.scored_network, scored, self._count)
            self.history.append(
                EpochMetrics(
                    epoch=self.quarters / QUARTERS,
                    train_loss=loss_sum / max(seen, 1),
                    train_accuracy=hits / max(seen, 1),
                    loss=result.loss,
                    correct=result.correct,
                    total=result.total,
                    seconds=time.perf_counter() - started,
                    confusion=result.confusion.tolist(),
                )
            )
            yield self.history[-1]

    def _count(self) -> None:
        self.scored += 1

    def _train_quarter(self, train: LabelledImages) -> tuple[float, int, int]:
        # Returns the sum of losses, the number of hits and the number of images.
        self.network.train()
        size = self.hyperparameters.batch_size
        kind, strength = self.hyperparameters.augmentation_kind, self.hyperparameters.augmentation
        loss_sum = torch.zeros((), device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        chosen = self._next_quarter(len(train)).to(self.device)
        with _seeded(self.device, derive(self.seed, "quarter", self.quarters)):
            for part in _split(chosen, CHUNK * size):
                images = augment(train.images[part].to(torch.float32), kind, strength)
                images, labels = standardize(images), train.labels[part]
                for batch, target in zip(_split(images, size), _split(labels, size), strict=True):
                    loss, correct = self._step(batch, target)
                    loss_sum += loss * len(target)
                    hits += correct
                if not torch.isfinite(loss_sum):
                    raise Diverged(f"the training loss is {loss_sum.item()} in epoch {self.quarters // QUARTERS + 1}")
        self.quarters += 1
        return loss_sum.item(), int(hits), len(chosen)

    def _next_quarter(self, count: int) -> Tensor:
        # Indices of the next quarter's images, in whole batches of the epoch's shuffle.
        epoch, quarter = divmod(self.quarters, QUARTERS)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        size = self.hyperparameters.batch_size
        batches = max(1, math.ceil((count - 1) / size))  # a single leftover image joins the last
        start, end = (batches * part // QUARTERS * size for part in (quarter, quarter + 1))
        return torch.randperm(count, generator=generator)[start : count if quarter == QUARTERS - 1 else end]

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # images: (B, 1, 28, 28) float32; returns loss and hits, both ().
        self.steps += 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.network(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hyperparameters.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step(self._learning_rate())
        self.optimizer.average(self._share())
        return loss.detach(), (logits.argmax(dim=1) == labels).sum()

    def _learning_rate(self) -> float:
        """Learning rate for the current step; independent of the epoch budget."""
        images = self.steps * self.hyperparameters.batch_size
        warmth = min(1.0, self.steps / WARMUP_STEPS)
        return self.hyperparameters.learning_rate * warmth / math.sqrt(1 + images / DECAY_HORIZON)

    def _share(self) -> float:
        # Weight of the current values in the moving average: larger at first, to forget the initial weights.
        return max(min(self.hyperparameters.batch_size / AVERAGE_HORIZON, 1.0), 9 / (9 + self.steps))

    def state_dict(self) -> dict[str, Any]:
        """The state from which another process can resume, as tensors and plain values."""
        return {
            "averaged": self.averaged.state_dict(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "quarters": self.quarters,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any], history: list[EpochMetrics]) -> None:
        """Resume from a state with the same hyperparameters, seed, device and thread count."""
        self.averaged.load_state_dict(state["averaged"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.quarters, self.steps = state["quarters"], state["steps"]
        self.history = list(history)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _split(values: Tensor, size: int) -> list[Tensor]:
    # A single leftover value joins the last part, because one image has no variance to normalize by.
    parts = list(values.split(size)) if len(values) else []
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
