"""Classify PNG and JPEG files.

An image of any size and colour is converted to the form of Fashion-MNIST: 28 x 28 grey pixels, light clothes on black.
An image already in that form stays unchanged.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from fmnist.data import CLASSES, SIDE, standardize
from fmnist.errors import ExpectedError
from fmnist.evaluation import BATCH

FORMATS = ("PNG", "JPEG")


class ImageError(ExpectedError):
    """A file is missing, damaged, or not a PNG or JPEG image; the message names it."""


@dataclass(frozen=True)
class Prediction:
    """The most likely class of an image, its probability, and the probability of every class by name."""

    class_name: str
    probability: float
    probabilities: dict[str, float]


@torch.no_grad()
def predict(network: nn.Module, images: Tensor | Sequence[Tensor]) -> list[Prediction]:
    """Classify images with a network in evaluation mode.

    Args:
        network: on the same device as the images.
        images: (N, 1, 28, 28) uint8, or N tensors (1, 28, 28); 0 is the background; N is 1 or more.
    """
    network.eval()
    images = images if isinstance(images, Tensor) else torch.stack(list(images))
    logits = torch.cat([network(standardize(part)) for part in images.split(BATCH)])
    probabilities = logits.to(torch.float64).softmax(dim=1)
    return [
        Prediction(CLASSES[index], row[index], dict(zip(CLASSES, row, strict=True)))
        for index, row in zip(logits.argmax(dim=1).tolist(), probabilities.tolist(), strict=True)
    ]


def read_images(paths: Iterable[Path], invert: bool) -> tuple[list[tuple[Path, Tensor]], list[ImageError]]:
    """Read images with `read_image`; return those that can be read, and an error for each other one."""
    images, errors = [], []
    for path in paths:
        try:
            images.append((path, read_image(path, invert)))
        except ImageError as error:
            errors.append(error)
    return images, errors


def read_image(path: Path | str, invert: bool = False) -> Tensor:
    """Read an image file in the form of the training images.

    Args:
        path: a PNG or JPEG file; transparent parts become background.
        invert: for dark clothes on white.

    Returns:
        (1, 28, 28) uint8, 0 is the background.

    Raises:
        ImageError: the file cannot be read.
    """
    grey, alpha = _grey_and_alpha(_decode(Path(path)))
    light = ImageOps.invert(grey) if invert else grey
    return torch.from_numpy(np.array(_fit(ImageChops.multiply(light, alpha)))).unsqueeze(0)


def _decode(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # Pillow warns about EXIF data that it cannot read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            image.load()
    except Exception as error:  # Pillow's decoders fail in a dozen ways on damaged files
        raise ImageError(f"{path}: {_reason(error, path)}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata: only the orientation is lost
        return image


def _reason(error: Exception, path: Path) -> str:
    match error:
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down"
        case UnidentifiedImageError():
            empty = path.stat().st_size == 0
            return "empty; copy or save it again" if empty else "not a PNG or JPEG image; convert it to one"
        case OSError(strerror=str(reason)):
            return f"{reason}; name a PNG or JPEG image"
    return f"damaged or incomplete ({error}); copy or save it again"


def _grey_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    # Luminance (ITU-R BT.601) and opacity, both of mode L.
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling
        pixels = np.asarray(image, dtype=np.uint32)
        opaque = pixels != image.info.get("transparency", -1)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)), Image.fromarray(opaque).convert("L")
    grey, alpha = image.convert("LA").split()
    return grey, alpha


def _fit(image: Image.Image) -> Image.Image:
    # Scales the longer side to 28 pixels and pads the shorter one with background, as for Fashion-MNIST (Xiao, Rasul
    # and Vollgraf, 2017, section 2). They subsample; BOX averages, which restores an enlarged original exactly.
    scale = SIDE / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    canvas = Image.new("L", (SIDE, SIDE))
    small = image.resize((width, height), Image.Resampling.BOX)
    canvas.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return canvas
