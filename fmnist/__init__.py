"""Fashion-MNIST networks: trained, scored, saved, used. What is named here is for others to use, and stays.

Each name is imported when it is first used: torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist import checkpoint, data
    from fmnist.errors import ExpectedError
    from fmnist.evaluation import classification_report, evaluate
    from fmnist.hyperparameters import Hyperparameters
    from fmnist.prediction import predict, read_image
    from fmnist.training import Training

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

_FROM = {
    "ExpectedError": "errors",
    "Hyperparameters": "hyperparameters",
    "Training": "training",
    "classification_report": "evaluation",
    "evaluate": "evaluation",
    "predict": "prediction",
    "read_image": "prediction",
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
