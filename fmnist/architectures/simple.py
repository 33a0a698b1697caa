"""The write-up's network for tuning: one convolution, then fully connected layers."""

from torch import nn

from fmnist.architectures.layers import Dropout, FlattenPixels
from fmnist.data import CLASSES, SIDE
from fmnist.hyperparameters import Hyperparameters


def simple(hyperparameters: Hyperparameters) -> nn.Sequential:
    """Convolution of kernel 5, max-pool, ReLU, and three fully connected layers.

    The write-up gives the convolution (kernel 5, 8 filters), ReLU, and "several fully
    connected layers"; their widths here, 128 and 64, are ours. Pooling before ReLU gives
    the same result as after it, on a quarter of the elements.

    Args:
        hyperparameters: `filters` of the convolution, the write-up's is 8; `dropout` before
            each fully connected layer but the first. `blocks` is ignored: there are none.
    """
    filters, dropout = hyperparameters.filters, hyperparameters.dropout
    pooled = (SIDE - 4) // 2
    return nn.Sequential(
        nn.Conv2d(1, filters, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        FlattenPixels(),
        nn.Linear(filters * pooled**2, 128),
        nn.ReLU(),
        Dropout(dropout),
        nn.Linear(128, 64),
        nn.ReLU(),
        Dropout(dropout),
        nn.Linear(64, len(CLASSES)),
    )
