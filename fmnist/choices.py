"""Names to choose from. Nothing heavy is imported here: the command line's help has them too."""

from typing import Literal

Architecture = Literal["simple", "cnn", "resnet", "transformer"]
Optimizer = Literal["adam", "adamw", "sgd"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu"]
AugmentationKind = Literal["flip", "rotation", "both", "crop", "jitter", "erasing"]
