"""The training loop of PyTorch's and Optuna's own examples: the baseline of the other benchmarks.

A `DataLoader` over PIL images with torchvision's transforms, batch norm and ReLU before
pooling, torch's layers, unfused Adam, and scores of the last weights. Network, loss, batch
size, augmentation and epochs equal fmnist's, so that only the loop differs.
"""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fmnist.architectures.cnn import RESIDUALS
from fmnist.augmentation import ERASE_PROBABILITY, ERASED_AREA, ERASED_RATIO, FLIP_PROBABILITY, MAX_DEGREES, MAX_SHIFT
from fmnist.choices import augmentations
from fmnist.data import CLASSES, PIXEL_MEAN, PIXEL_STD, SIDE, LabelledImages, Splits
from fmnist.hyperparameters import Hyperparameters

Batches = DataLoader[tuple[Tensor, int]]  # of items; a batch is of two tensors


class Images(Dataset[tuple[Tensor, int]]):
    """Items like those of `torchvision.datasets.FashionMNIST`: a transformed PIL image and its label."""

    def __init__(self, images: LabelledImages, transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = images.images, images.labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index, 0].numpy())), int(self.labels[index])


def loaders(splits: Splits, hyperparameters: Hyperparameters, workers: int) -> tuple[Batches, Batches]:
    """Loaders of the training images (shuffled and augmented) and of the scored ones."""
    as_tensor, normalized = transforms.ToTensor(), transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))
    strength = hyperparameters.augmentation
    flip = transforms.RandomHorizontalFlip(strength * FLIP_PROBABILITY)
    rotation = transforms.RandomRotation(strength * MAX_DEGREES, transforms.InterpolationMode.BILINEAR)
    changes = {
        "flip": [flip],
        "rotation": [rotation],
        "both": [flip, rotation],
        "crop": [transforms.RandomCrop(SIDE, padding=round(strength * MAX_SHIFT))],
    }
    kinds = augmentations(hyperparameters.augmentation_kind)
    of_pictures = [change for kind in kinds if kind != "erasing" for change in changes[kind]]
    ratios = (1 / ERASED_RATIO, ERASED_RATIO)
    erasing = transforms.RandomErasing(strength * ERASE_PROBABILITY, ERASED_AREA, ratios)
    of_tensors = [erasing] if "erasing" in kinds else []
    train = Images(splits.train, transforms.Compose([*of_pictures, as_tensor, *of_tensors, normalized]))
    scored = Images(splits.scored, transforms.Compose([as_tensor, normalized]))
    return (
        Batches(train, hyperparameters.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0),
        Batches(scored, 1000, num_workers=workers, persistent_workers=workers > 0),
    )


class Residual(nn.Module):
    """A convolution, batch norm and ReLU, added to their input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """(N, features, S, S) to the same shape."""
        return images.add(self.layers(images))


def network(hyperparameters: Hyperparameters) -> nn.Sequential:
    """fmnist's `simple` or `cnn` with layers in the usual order."""
    filters, dropout = hyperparameters.filters, hyperparameters.dropout
    if hyperparameters.architecture == "simple":
        return nn.Sequential(
            nn.Conv2d(1, filters, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(filters * ((SIDE - 4) // 2) ** 2, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, len(CLASSES)),
        )
    layers: list[nn.Module] = []
    inputs, outputs = 1, filters
    for number in range(hyperparameters.blocks):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        if hyperparameters.residual and number < RESIDUALS:
            layers.append(Residual(outputs))
        inputs, outputs = outputs, 2 * outputs
    features = inputs * (SIDE // 2**hyperparameters.blocks) ** 2
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(features, 128),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, len(CLASSES)),
    )


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    hyperparameters: Hyperparameters,
    mixed: bool = False,
) -> None:
    """Train one epoch; mixed: with torch's automatic mixed precision."""
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = model(images)
        F.cross_entropy(logits.float(), labels, label_smoothing=hyperparameters.label_smoothing).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches, mixed: bool = False) -> float:
    """The share of correctly classified images."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        correct = sum(int((model(images).argmax(dim=1) == labels).sum()) for images, labels in batches)
    return correct / len(batches.dataset)  # type: ignore[arg-type]


def epochs(hyperparameters: Hyperparameters, splits: Splits, seed: int, workers: int = 0) -> Iterator[float]:
    """Train; yields the accuracy after each epoch."""
    torch.manual_seed(seed)
    batches, scored = loaders(splits, hyperparameters, workers)
    model = network(hyperparameters)
    optimizer = torch.optim.Adam(model.parameters(), lr=hyperparameters.learning_rate)
    for _ in range(hyperparameters.epochs):
        train(model, batches, optimizer, hyperparameters)
        yield accuracy(model, scored)
