"""What a network takes the images in files for: PNG and JPEG in, a class and its probability out.

An image of any size and colour is brought to what Fashion-MNIST's images are: 28 x 28
grey pixels, light clothes on black. One that is so already passes through bit for bit.
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
    """A file is absent, damaged, or no image of a known format; the message names it."""


@dataclass(frozen=True)
class Prediction:
    """The most likely class of an image, its probability, and that of every class by name."""

    class_name: str
    probability: float
    probabilities: dict[str, float]


@torch.no_grad()
def predict(network: nn.Module, images: Tensor | Sequence[Tensor]) -> list[Prediction]:
    """Classify images by a network in evaluation mode.

    Args:
        network: on the same device as the images.
        images: (N, 1, 28, 28) uint8, or N of (1, 28, 28), 0 is the background; N is 1 or more.
    """
    network.eval()
    images = images if isinstance(images, Tensor) else torch.stack(list(images))
    logits = torch.cat([network(standardize(part)) for part in images.split(BATCH)])
    shares = logits.to(torch.float64).softmax(dim=1)
    return [
        Prediction(CLASSES[index], row[index], dict(zip(CLASSES, row, strict=True)))
        for index, row in zip(logits.argmax(dim=1).tolist(), shares.tolist(), strict=True)
    ]


def read_images(paths: Iterable[Path], invert: bool) -> tuple[list[tuple[Path, Tensor]], list[ImageError]]:
    """Read those images that can be read, as `read_image` does; the errors tell of the others."""
    images, errors = [], []
    for path in paths:
        try:
            images.append((path, read_image(path, invert)))
        except ImageError as error:
            errors.append(error)
    return images, errors


def read_image(path: Path | str, invert: bool = False) -> Tensor:
    """Read an image as the network's training images are.

    Args:
        path: a PNG or JPEG file; transparent parts of it are background.
        invert: whether it shows dark clothes on white.

    Returns:
        (1, 28, 28) uint8, 0 is the background.

    Raises:
        ImageError: it cannot be read.
    """
    grey, alpha = _grey_and_alpha(_decode(Path(path)))
    light = ImageOps.invert(grey) if invert else grey
    return torch.from_numpy(np.array(_fit(ImageChops.multiply(light, alpha)))).unsqueeze(0)


def _decode(path: Path) -> Image.Image:
    """The image in a file, upright."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, on EXIF data that it cannot read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            image.load()
    except Exception as error:  # Pillow's decoders fail in a dozen ways on damaged files
        raise ImageError(f"{path}: {_reason(error, path)}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ImageOps.exif_transpose(image)
    except Exception:  # likewise on damaged metadata, which only say how it was held: the pixels are there
        return image


def _reason(error: Exception, path: Path) -> str:
    """What is wrong with the file, and what to do about it."""
    match error:
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down"
        case UnidentifiedImageError():
            empty = path.stat().st_size == 0
            return "empty; copy or save it once more" if empty else "not a PNG or JPEG image; convert it to one"
        case OSError(strerror=str(reason)):
            return f"{reason}; name a PNG or JPEG image"
    return f"damaged or incomplete ({error}); copy or save it once more"


def _grey_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Luminance (ITU-R BT.601) and opacity, both of mode L."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8, not scale
        pixels = np.asarray(image, dtype=np.uint32)
        opaque = pixels != image.info.get("transparency", -1)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)), Image.fromarray(opaque).convert("L")
    grey, alpha = image.convert("LA").split()
    return grey, alpha


def _fit(image: Image.Image) -> Image.Image:
    """Scale the longer side to 28 pixels, and extend the shorter one by background on both sides.

    So Fashion-MNIST was made (Xiao, Rasul and Vollgraf, 2017, section 2). Means over areas
    stand in for its subsampling: an enlarged image of the data set comes back bit for bit.
    """
    scale = SIDE / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    canvas = Image.new("L", (SIDE, SIDE))
    small = image.resize((width, height), Image.Resampling.BOX)
    canvas.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return canvas
