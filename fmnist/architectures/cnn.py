"""The default network: convolution blocks that halve the image, then fully connected layers."""

from itertools import pairwise

from torch import nn

from fmnist.data import CLASSES, SIDE

BLOCKS = 3
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


def cnn(filters: int, dropout: float) -> nn.Sequential:
    """Three blocks of `filters`, 2 `filters` and 4 `filters`, and two fully connected layers.

    Args:
        filters: of the first block.
        dropout: share of features dropped before each fully connected layer.
    """
    widths = [1, *(filters * 2**i for i in range(BLOCKS))]
    blocks = [layer for inputs, outputs in pairwise(widths) for layer in block(inputs, outputs)]
    features = widths[-1] * (SIDE // 2**BLOCKS) ** 2
    return nn.Sequential(
        *blocks,
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(features, HIDDEN),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(HIDDEN, len(CLASSES)),
    )
