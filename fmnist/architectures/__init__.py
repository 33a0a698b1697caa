"""The networks. Each maps (N, 1, 28, 28) float32 standardized images to (N, 10) logits."""

from torch import nn

from fmnist import own_network
from fmnist.architectures.cnn import cnn
from fmnist.architectures.resnet import resnet
from fmnist.architectures.simple import simple
from fmnist.architectures.transformer import transformer
from fmnist.choices import is_own
from fmnist.hyperparameters import Hyperparameters

ARCHITECTURES = {"simple": simple, "cnn": cnn, "resnet": resnet, "transformer": transformer}


def build(hyperparameters: Hyperparameters) -> nn.Module:
    """Build the network that the hyperparameters name, with random initial weights.

    Raises:
        NetworkError: the user's own network cannot be loaded or built.
    """
    if is_own(hyperparameters.architecture):
        return own_network.load(hyperparameters.architecture).build(hyperparameters.network)
    return ARCHITECTURES[hyperparameters.architecture](hyperparameters)
