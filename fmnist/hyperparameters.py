"""Everything that decides a training, in one frozen object.

Together with a seed and a data set, a `Hyperparameters` determines the trained
weights on a given machine and thread count. What merely runs a training
(device, threads, folders) is not here.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Architecture = Literal["simple", "cnn"]
ScoreOn = Literal["test", "validation"]  # the images that score a training; the latter are held out of it


class Hyperparameters(BaseModel):
    """One configuration of network, optimiser and augmentation.

    Raises:
        pydantic.ValidationError: at construction, for a value out of its bounds,
            of another type, or an unknown name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    architecture: Architecture = Field("cnn", description="the network")
    epochs: int = Field(6, ge=1, le=1000, description="passes over the training images")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="Adam's step size after warm-up")
    batch_size: int = Field(64, ge=1, le=60_000, description="images a gradient step")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of features dropped before each fully connected layer")
    filters: int = Field(20, ge=1, le=1024, description="filters of the first convolution")
    augmentation: float = Field(0.05, ge=0, le=1, description="strength of flip and rotation")
