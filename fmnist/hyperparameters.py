"""Everything that decides a training, in one frozen object.

Together with a seed and a data set, a `Hyperparameters` determines the trained
weights on a given machine and thread count. What merely runs a training
(device, threads, folders) is not here.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fmnist.choices import Activation, Architecture, Optimizer, augmentations, is_own
from fmnist.errors import UsageError

PART = r"[A-Za-z_]\w*"
OWN = rf"(?:(?!/)(?!.*\.\.)[\w./ -]*\w\.py|{PART}(?:\.{PART})*):{PART}"  # a network of the user's own

OWN_SIZE = 0  # of a kernel: the architecture's own

ScoreOn = Literal["test", "validation"]  # the images that score a training; the latter are held out of it


def _architecture(name: str) -> str:
    if name in get_args(Architecture) or re.fullmatch(OWN, name):
        return name
    if is_own(name):
        raise ValueError(
            f"{name!r} names no network; write FILE.py:CLASS, of a file below this folder, or MODULE:CLASS"
        )
    known = get_args(Architecture)
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}, and FILE.py:CLASS of your own"
    raise ValueError(f"{name!r} is no network; {meant}")


def _named(architecture: object) -> object:
    if callable(architecture) or (isinstance(architecture, str) and architecture.startswith("__main__:")):
        raise ValueError(
            "a class is found by its file: write it to one (%%writefile my_net.py in a notebook's cell) and name it, "
            "as my_net.py:CNNModel"
        )
    return architecture


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

    architecture: Annotated[str, AfterValidator(_architecture), BeforeValidator(_named)] = Field(
        "cnn",
        description="the network: simple (the write-up's, of one convolution), cnn, resnet, transformer, or your own, "
        "as FILE.py:CLASS or MODULE:CLASS",
    )
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
    network: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="arguments of your own network's constructor"
    )

    @model_serializer(mode="wrap")
    def _of_the_network(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what a network of the user's own does not have."""
        values: dict[str, Any] = dump(self)
        if not is_own(self.architecture):
            return values
        return {name: value for name, value in values.items() if name in TRAINING or name == "network"}

    @model_validator(mode="after")
    def _arguments_are_of_the_network(self) -> Self:
        own = is_own(self.architecture)
        if self.network and not own:
            raise ValueError(
                f"network: {self.architecture} is no network of your own; set hyperparameters by their names"
            )
        fields = type(self).model_fields
        for name in fields.keys() - TRAINING - {"network"} if own else ():
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name}: is not for a network of your own; write network={{{name!r}: ...}}")
        return self

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """The same with other values, unchecked, those of your own network's constructor among them."""
        if not is_own(self.architecture):
            return self.model_copy(update=dict(values))
        arguments = {name: value for name, value in values.items() if name not in TRAINING}
        of_training = {name: value for name, value in values.items() if name in TRAINING}
        return self.model_copy(update={**of_training, "network": {**self.network, **arguments}})

    def __hash__(self) -> int:
        return hash((*(value for name, value in self if name != "network"), frozenset(self.network.items())))


# What a network of the user's own leaves to the training; the others are arguments of our networks.
TRAINING = frozenset(
    {
        "architecture",
        "epochs",
        "optimizer",
        "learning_rate",
        "momentum",
        "batch_size",
        "weight_decay",
        "l1",
        "label_smoothing",
        "augmentation",
        "augmentation_kind",
    }
)
RESERVED = TRAINING | {"seed", "network"}  # no parameter of a constructor of the user's has such a name


def check_batch_size(size: int) -> None:
    """Refuse batches of one image in a new training; 0.2.0 allowed them, and what it made can be read.

    Raises:
        UsageError: it is one.
    """
    if size < 2:
        raise UsageError(f"batch_size: {size} is too few, as one image has no variance to normalise by; use 2 or more")
