"""The networks and augmentations by name. Nothing heavy is imported here: the command line's help has them too."""

from typing import Literal

Architecture = Literal["simple", "cnn", "resnet", "transformer"]
AugmentationKind = Literal["flip", "rotation", "both", "crop", "jitter", "erasing"]
