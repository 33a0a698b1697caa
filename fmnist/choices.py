"""Names of networks, optimizers, activations and augmentations.

The command line's help uses them, so nothing heavy is imported here.
"""

import reprlib
from typing import Literal, get_args

Architecture = Literal["simple", "cnn", "resnet", "transformer"]
Optimizer = Literal["adam", "adamw", "sgd"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu"]
Augmentation = Literal["flip", "rotation", "both", "crop", "jitter", "erasing"]
AppliedTta = Literal["mirror", "none"]  # test-time augmentation of one training run
Tta = Literal["auto", "mirror", "none"]


def is_own(architecture: str) -> bool:
    """Whether an architecture is the user's own network (FILE.py:CLASS or MODULE:CLASS)."""
    return ":" in architecture


def in_file(architecture: str) -> bool:
    """Whether the user's own network is in a file (FILE.py:CLASS), not in an importable module."""
    return ".py:" in architecture


def augmentations(kind: str) -> list[str]:
    """The augmentations that a kind names, in the order of application.

    Args:
        kind: "none", or some of `Augmentation` joined by "+".

    Returns:
        Some of `Augmentation`, each at most once; a flip right before a rotation becomes "both".

    Raises:
        ValueError: the kind has an unknown name, or an augmentation twice.
    """
    if kind == "none":
        return []
    named = kind.split("+")
    for part in named:
        if part not in get_args(Augmentation):
            known = ", ".join(get_args(Augmentation))
            raise ValueError(f"{reprlib.repr(part)} is not an augmentation; write none alone, or join {known} with +")
    single = [each for part in named for each in (("flip", "rotation") if part == "both" else (part,))]
    for part in single:
        if single.count(part) > 1:
            raise ValueError(f"{part} appears twice; keep one (both is flip and rotation)")
    return "+".join(single).replace("flip+rotation", "both").split("+")
