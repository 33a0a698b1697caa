"""Fashion-MNIST networks: trained, scored, saved, used. What is named here is for others to use, and stays.

Each name is imported when it is first used: torch takes seconds.
"""

from typing import TYPE_CHECKING

from fmnist import streams
from fmnist.lazy import exports

if TYPE_CHECKING:
    from fmnist import checkpoint, data
    from fmnist.errors import ExpectedError
    from fmnist.evaluation import classification_report, evaluate
    from fmnist.hyperparameters import Hyperparameters
    from fmnist.prediction import predict, read_image
    from fmnist.training import Training

streams.occupy()  # before this package, or `search`, which imports it first, opens a file

__all__ = [
    "ExpectedError",
    "Hyperparameters",
    "Training",
    "checkpoint",
    "classification_report",
    "data",
    "evaluate",
    "predict",
    "read_image",
]

__getattr__ = exports(
    __name__,
    __all__,
    {
        "ExpectedError": "errors",
        "Hyperparameters": "hyperparameters",
        "Training": "training",
        "classification_report": "evaluation",
        "evaluate": "evaluation",
        "predict": "prediction",
        "read_image": "prediction",
    },
)
