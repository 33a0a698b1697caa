"""Fashion-MNIST networks: trained, scored, saved, used. What is named here is for others to use, and stays.

Each name is imported when it is first used: torch takes seconds.
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

streams.occupy()  # before this package, or `search`, which imports it first, opens a file

__getattr__, __all__ = exports(__name__)
