"""Train, score, save and use Fashion-MNIST networks. The names listed here are the stable public API.

Each is imported on first use, because importing torch takes seconds.
"""

from typing import TYPE_CHECKING

from fmnist import streams
from fmnist.lazy import exports

if TYPE_CHECKING:
    from fmnist import checkpoint as checkpoint
    from fmnist import data as data
    from fmnist import ensemble as ensemble
    from fmnist import own_network as own_network
    from fmnist.errors import ExpectedError as ExpectedError
    from fmnist.evaluation import classification_report as classification_report
    from fmnist.evaluation import evaluate as evaluate
    from fmnist.hyperparameters import Hyperparameters as Hyperparameters
    from fmnist.prediction import predict as predict
    from fmnist.prediction import read_image as read_image
    from fmnist.training import Training as Training

streams.occupy()  # before this package opens a file, or `search`, which imports it first

__getattr__, __all__ = exports(__name__)
