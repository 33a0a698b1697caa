"""The write-up's network for tuning: one convolution, then fully connected layers."""

from torch import nn

from fmnist.architectures.layers import ACTIVATIONS, Dropout, FlattenPixels
from fmnist.data import CLASSES, SIDE
from fmnist.hyperparameters import Hyperparameters

KERNEL_SIZE = 5  # unless `kernel_size` says otherwise


def simple(hyperparameters: Hyperparameters) -> nn.Sequential:
    """Convolution, max-pool, activation, and three fully connected layers.

    The write-up gives the convolution (kernel 5, 8 filters), ReLU, and "several fully
    connected layers"; their widths here, 128 and 64, are ours. Pooling before ReLU gives
    the same result as after it, on a quarter of the elements; with gelu or silu, which
    also fall, it would not.

    Args:
        hyperparameters: `filters` of the convolution, the write-up's is 8; its `kernel_size`;
            `hidden` features of the first fully connected layer, of which the second has half;
            `activation`; `dropout` before each fully connected layer but the first. `blocks`
            is ignored: there are none.
    """
    filters, dropout, hidden = hyperparameters.filters, hyperparameters.dropout, hyperparameters.hidden
    activation = ACTIVATIONS[hyperparameters.activation]
    kernel_size = hyperparameters.kernel_size or KERNEL_SIZE
    pooled, half = (SIDE - kernel_size + 1) // 2, max(1, hidden // 2)
    return nn.Sequential(
        nn.Conv2d(1, filters, kernel_size),
        nn.MaxPool2d(2),
        activation(),
        FlattenPixels(),
        nn.Linear(filters * pooled**2, hidden),
        activation(),
        Dropout(dropout),
        nn.Linear(hidden, half),
        activation(),
        Dropout(dropout),
        nn.Linear(half, len(CLASSES)),
    )
