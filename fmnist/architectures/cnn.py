"""The default network: convolution blocks that halve the image, then fully connected layers."""

from itertools import pairwise

from torch import nn

from fmnist.architectures.layers import Dropout, FlattenPixels
from fmnist.data import CLASSES, SIDE
from fmnist.hyperparameters import Hyperparameters

HIDDEN = 128  # features between the two fully connected layers


def block(inputs: int, outputs: int) -> list[nn.Module]:
    """3 x 3 convolution, 2 x 2 max-pool, batch norm, ReLU.

    The pool comes before batch norm (Ioffe and Szegedy, 2015) and ReLU, which then have a
    quarter of the elements to work on.
    """
    return [
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def cnn(hyperparameters: Hyperparameters) -> nn.Sequential:
    """Blocks that halve the image (28, 14, 7, 3, 1) and double in width, and two fully connected layers.

    Args:
        hyperparameters: `filters` of the first block; how many `blocks`; `dropout` before
            each fully connected layer.
    """
    widths = [1, *(hyperparameters.filters * 2**i for i in range(hyperparameters.blocks))]
    blocks = [layer for inputs, outputs in pairwise(widths) for layer in block(inputs, outputs)]
    features = widths[-1] * (SIDE // 2**hyperparameters.blocks) ** 2
    return nn.Sequential(
        *blocks,
        FlattenPixels(),
        Dropout(hyperparameters.dropout),
        nn.Linear(features, HIDDEN),
        nn.ReLU(),
        Dropout(hyperparameters.dropout),
        nn.Linear(HIDDEN, len(CLASSES)),
    )
