"""The configuration of a training run, as one frozen object.

Together with a seed and a data set, `Hyperparameters` determines the trained weights on a given machine and thread
count. Settings that only affect execution (device, threads, folders) are not part of it.
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
OWN = rf"(?:(?!/)(?!.*\.\.)[\w./ -]*\w\.py|{PART}(?:\.{PART})*):{PART}"  # the user's own network

SMALLEST_BATCH = 2  # of new training runs
DEFAULT_KERNEL_SIZE = 0  # kernel size: the architecture's default

ScoreOn = Literal["test", "validation"]  # images that score a training run; validation is held out of training


def _architecture(name: str) -> str:
    if name in get_args(Architecture) or re.fullmatch(OWN, name):
        return name
    if is_own(name):
        raise ValueError(
            f"{name!r} does not name a network; write FILE.py:CLASS (a file below this folder) or MODULE:CLASS"
        )
    known = get_args(Architecture)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(known)}, or FILE.py:CLASS for your own"
    raise ValueError(f"{name!r} is not a network; {hint}")


def _reject_class(architecture: object) -> object:
    if callable(architecture) or (isinstance(architecture, str) and architecture.startswith("__main__:")):
        raise ValueError(
            "must name a file, not a class; save the class to a file (%%writefile my_net.py in a notebook) and write "
            "my_net.py:CNNModel"
        )
    return architecture


def _augmentation_kind(kind: str) -> str:
    augmentations(kind)  # raises ValueError
    return kind


class Hyperparameters(BaseModel):
    """One configuration of network, optimizer and augmentation.

    Raises:
        pydantic.ValidationError: a value is out of bounds or of the wrong type, or a name is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    architecture: Annotated[str, AfterValidator(_architecture), BeforeValidator(_reject_class)] = Field(
        "cnn",
        description="network: simple (the write-up's, with one convolution), cnn, resnet, transformer, or your own, "
        "as FILE.py:CLASS or MODULE:CLASS",
    )
    epochs: int = Field(6, ge=1, le=1000, description="passes over the training images")
    optimizer: Optimizer = Field(
        "adam", description="adamw is adam with decoupled weight decay; sgd has Nesterov momentum"
    )
    learning_rate: float = Field(2e-3, gt=0, le=1, description="peak step size, after warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; 0 is none")
    batch_size: int = Field(
        64,
        ge=1,  # in files of 0.2.0; see check_batch_size
        le=60_000,
        description="images per gradient step",
        json_schema_extra={"minimum": SMALLEST_BATCH},
    )
    filters: int = Field(
        20, ge=1, le=1024, description="filters of the first convolution; transformer: features per head"
    )
    blocks: int = Field(3, ge=1, le=4, description="blocks of the network; simple has none")
    kernel_size: int = Field(
        DEFAULT_KERNEL_SIZE,
        ge=0,
        le=15,
        description="kernel size of cnn and simple, in pixels; 0 means 3 in cnn and 5 in simple",
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
        description="adam and sgd: L2 penalty, adds this times the weights to the gradient; "
        "adamw: each step multiplies the weights by 1 minus this times the learning rate",
    )
    l1: float = Field(0.0, ge=0, le=1, description="L1 penalty: adds this times the weights' signs to the gradient")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread over all classes")
    augmentation: float = Field(0.05, ge=0, le=1, description="augmentation strength; 0 is none")
    augmentation_kind: Annotated[str, AfterValidator(_augmentation_kind)] = Field(
        "both",
        description="augmentations: none, or some of flip, rotation, both (flip and rotation), crop (a shift by "
        "up to 4 pixels), jitter (of brightness and contrast) and erasing (of a rectangle), joined by + in the order "
        "of application, such as crop+flip+erasing",
    )
    network: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="constructor arguments of your own network"
    )

    @model_serializer(mode="wrap")
    def _serialize(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if not is_own(self.architecture):
            return values
        # The other fields are hyperparameters of the built-in networks only.
        return {name: value for name, value in values.items() if name in TRAINING or name == "network"}

    @model_validator(mode="after")
    def _check_network_arguments(self) -> Self:
        own = is_own(self.architecture)
        if self.network and not own:
            raise ValueError(f"network: {self.architecture} is not your own network; set its hyperparameters by name")
        fields = type(self).model_fields
        for name in fields.keys() - TRAINING - {"network"} if own else ():
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name}: does not apply to your own network; write network={{{name!r}: ...}}")
        return self

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values, not validated; may include constructor arguments of your own network."""
        if not is_own(self.architecture):
            return self.model_copy(update=dict(values))
        arguments = {name: value for name, value in values.items() if name not in TRAINING}
        of_training = {name: value for name, value in values.items() if name in TRAINING}
        return self.model_copy(update={**of_training, "network": {**self.network, **arguments}})

    def __hash__(self) -> int:
        return hash((*(value for name, value in self if name != "network"), frozenset(self.network.items())))


# Hyperparameters of the training run; the others are arguments of the built-in networks.
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
RESERVED = TRAINING | {"seed", "network"}  # names that the constructor of the user's own network must not use


_BOUNDS = {
    "minimum": "{} or more",
    "gt": "above {}",  # of a number that may be None
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def bounds(schema: Mapping[str, Any]) -> str:
    """The range of a field in words, from its JSON schema: above 0, at most 1."""
    found = [text.format(f"{schema[key]:g}") for key, text in _BOUNDS.items() if key in schema]
    return ", ".join(found).replace(" or more, at most ", " to ")


def explained(name: str) -> str:
    """Meaning, range and default of a hyperparameter, for a help text."""
    schema = Hyperparameters.model_json_schema()["properties"][name]
    meaning, default = schema["description"], schema["default"]
    if not meaning.startswith((*get_args(Architecture), *get_args(Optimizer))):
        meaning = meaning[0].upper() + meaning[1:]
    facts = [f"default: {'off' if default is False else default}", bounds(schema)]
    return f"{meaning}.  [{'; '.join(filter(None, facts))}]"


def check_batch_size(size: int) -> None:
    """Reject batches of one image in new training runs; files of 0.2.0, which allowed them, stay readable.

    Raises:
        UsageError: `size` is less than SMALLEST_BATCH.
    """
    if size < SMALLEST_BATCH:
        raise UsageError(
            f"batch_size: {size} is too small, as one image has no variance to normalize by; "
            f"use {SMALLEST_BATCH} or more"
        )
