"""Everything that decides a training, in one frozen object.

Together with a seed and a data set, a `Hyperparameters` determines the trained
weights on a given machine and thread count. What merely runs a training
(device, threads, folders) is not here.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fmnist.choices import Activation, Architecture, Optimizer, augmentations
from fmnist.errors import UsageError

OWN_SIZE = 0  # of a kernel: the architecture's own

ScoreOn = Literal["test", "validation"]  # the images that score a training; the latter are held out of it


def _augmentation_kind(kind: str) -> str:
    augmentations(kind)  # raises ValueError
    return kind


class Hyperparameters(BaseModel):
    """One configuration of network, optimiser and augmentation.

    Raises:
        pydantic.ValidationError: at construction, for a value out of its bounds,
            of another type, or an unknown name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    architecture: Architecture = Field("cnn", description="the network; simple: the write-up's, of one convolution")
    epochs: int = Field(6, ge=1, le=1000, description="passes over the training images")
    optimizer: Optimizer = Field(
        "adam", description="adamw is adam with decoupled weight decay; sgd has Nesterov momentum"
    )
    learning_rate: float = Field(2e-3, gt=0, le=1, description="step size at its peak, after warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; 0 is none")
    batch_size: int = Field(64, ge=1, le=60_000, description="images a gradient step, two at least")
    filters: int = Field(
        20, ge=1, le=1024, description="filters of the first convolution; transformer: features a head"
    )
    blocks: int = Field(3, ge=1, le=4, description="blocks of the network; simple has none")
    kernel_size: int = Field(
        OWN_SIZE, ge=0, le=15, description="side of the kernels of cnn and simple, in pixels; 0: 3 in cnn, 5 in simple"
    )
    residual: bool = Field(
        False, description="cnn: a 3 x 3 convolution after each of the first two blocks, added to its input"
    )
    hidden: int = Field(
        128,
        ge=1,
        le=4096,
        description="features of the first fully connected layer of cnn and simple; simple's second has half",
    )
    activation: Activation = Field("relu", description="activation function of cnn and simple")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of features dropped")
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="adam and sgd: L2 penalty, this times the weights joins the gradient; "
        "adamw: each step multiplies the weights by 1 minus this times the learning rate",
    )
    l1: float = Field(0.0, ge=0, le=1, description="L1 penalty: this times the weights' signs joins the gradient")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread over all classes")
    augmentation: float = Field(0.05, ge=0, le=1, description="strength of augmentation; 0 is none")
    augmentation_kind: Annotated[str, AfterValidator(_augmentation_kind)] = Field(
        "both",
        description="which augmentation: none, or some of flip, rotation, both (flip and rotation), crop (a shift by "
        "up to 4 pixels), jitter (of brightness and contrast) and erasing (of a rectangle), joined by + in the order "
        "in which they are applied: crop+flip+erasing",
    )


def check_batch_size(size: int) -> None:
    """Refuse batches of one image in a new training; 0.2.0 allowed them, and what it made can be read.

    Raises:
        UsageError: it is one.
    """
    if size < 2:
        raise UsageError(f"batch_size: {size} is too few, as one image has no variance to normalise by; use 2 or more")
