"""Classify image files.

A photo is converted to the form of Fashion-MNIST: 28 x 28 grey pixels, light clothes on black. An image already in that
form stays unchanged.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from fmnist import photo
from fmnist.data import CLASSES, SIDE, standardize
from fmnist.errors import ExpectedError
from fmnist.evaluation import BATCH

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
READABLE = "PNG, JPEG, WebP, GIF, BMP or TIFF image"
# Of the 70,000 images of Fashion-MNIST, none has a border whose median is above this.
LIGHT_BORDER = 200
GUESS = 0.5  # probability; of held-out images below it, fewer than half are right: docs/results.md, Photos


class ImageError(ExpectedError):
    """A file is missing, damaged, or no image of a known format; the message names it."""


@dataclass(frozen=True)
class NetworkInput:
    """An image file as the network sees it.

    pixels: (1, 28, 28) uint8, 0 is the background. action: how they were made, in words. box: left, upper, right, lower
    edge of the object in the file's pixels, if it was looked for and found. warning: why not, if it was not found.
    """

    pixels: Tensor
    action: str
    box: tuple[int, int, int, int] | None = None
    warning: str | None = None


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


def read_images(
    paths: Iterable[Path], invert: bool, raw: bool = False
) -> tuple[list[tuple[Path, NetworkInput]], list[ImageError]]:
    """Read images with `network_input`; return those that can be read, and an error for each other one."""
    images, errors = [], []
    for path in paths:
        try:
            images.append((path, network_input(path, invert, raw)))
        except ImageError as error:
            errors.append(error)
    return images, errors


def read_image(path: Path | str, invert: bool = False, raw: bool = False) -> Tensor:
    """Read an image file in the form of the training images: find the object, crop to it, and show it on black.

    Args:
        path: a PNG, JPEG, WebP, GIF, BMP or TIFF file; the first frame counts.
        invert: negate the object's tones, whether it is darker or lighter than the background.
        raw: scale the whole picture instead; transparent parts become background, and `invert` is for dark clothes on
            white.

    Returns:
        (1, 28, 28) uint8, 0 is the background.

    Raises:
        ImageError: the file cannot be read.
    """
    return network_input(path, invert, raw).pixels


def network_input(path: Path | str, invert: bool = False, raw: bool = False) -> NetworkInput:
    """Read an image file as `read_image` does, and say how.

    Raises:
        ImageError: the file cannot be read.
    """
    image = _decode(Path(path))
    grey, alpha = _grey_and_alpha(image)
    if not raw and image.size != (SIDE, SIDE):
        try:
            return _found(image, photo.find(_colour(image, grey, alpha), invert))
        except photo.NoObject as error:
            return replace(_whole(grey, alpha, invert), warning=_no_object(error))
    return _whole(grey, alpha, invert or (not raw and _has_light_border(grey, alpha)))


def _found(image: Image.Image, found: photo.Found) -> NetworkInput:
    left, upper, right, lower = found.box
    width, height = image.size
    tone = "dark object on light" if found.dark else "light object on dark"
    action = f"{tone}, cropped to {right - left} x {lower - upper} of {width} x {height} pixels"
    return NetworkInput(_tensor(found.image), action, found.box)


def _whole(grey: Image.Image, alpha: Image.Image, invert: bool) -> NetworkInput:
    light = ImageOps.invert(grey) if invert else grey
    fitted = _fit(ImageChops.multiply(light, alpha))
    warning = _no_object(photo.BLANK) if np.ptp(np.asarray(fitted)) < photo.LEAST_CONTRAST else None
    return NetworkInput(_tensor(fitted), "whole picture, inverted" if invert else "whole picture", warning=warning)


def _no_object(reason: photo.NoObject | str) -> str:
    return f"no object found: {reason}. The whole picture was classified"


def _has_light_border(grey: Image.Image, alpha: Image.Image) -> bool:
    pixels = np.asarray(ImageChops.multiply(grey, alpha))
    return bool(np.median(np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])) > LIGHT_BORDER)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).unsqueeze(0)


def _decode(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # Pillow warns about EXIF data that it cannot read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            image.load()
    except Exception as error:  # Pillow's decoders fail in a dozen ways on damaged files
        raise ImageError(f"{path}: {_reason(error, path)}") from error
    if image.mode == "LAB":
        raise ImageError(f"{path}: its colours are of mode LAB, which Pillow does not convert; save it as RGB")
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
            return "empty; copy or save it again" if empty else f"not a {READABLE}; convert it to one"
        case OSError(strerror=str(reason)):
            return f"{reason}; name a {READABLE}"
    return f"damaged or incomplete ({error}); copy or save it again"


def _grey_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    # Luminance (ITU-R BT.601) and opacity, both of mode L.
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling
        pixels = np.asarray(image, dtype=np.uint32)
        opaque = pixels != image.info.get("transparency", -1)
        return Image.fromarray(np.minimum((pixels + 128) // 257, 255).astype(np.uint8)), Image.fromarray(
            opaque
        ).convert("L")
    grey, alpha = image.convert("LA").split()
    return grey, alpha


def _colour(image: Image.Image, grey: Image.Image, alpha: Image.Image) -> Image.Image:
    deep = image.mode.startswith("I")
    return Image.merge("RGBA", (*((grey,) * 3 if deep else image.convert("RGBA").split()[:3]), alpha))


def _fit(image: Image.Image) -> Image.Image:
    # Scales the longer side to 28 pixels and pads the shorter one with background, as for Fashion-MNIST (Xiao, Rasul
    # and Vollgraf, 2017, section 2). They subsample; BOX averages, which restores an enlarged original exactly.
    scale = SIDE / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    canvas = Image.new("L", (SIDE, SIDE))
    small = image.resize((width, height), Image.Resampling.BOX)
    canvas.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return canvas
