"""Find the object in a photo, and show it as Fashion-MNIST shows clothes: light on black, filling the square, centred.

Xiao, Rasul and Vollgraf (2017), section 2, trimmed product photographs to the object, scaled its longer side to 28
pixels, extended the shorter one and negated the result. Measured on the 60,000 training images: the object's longer
side has 28 pixels in 58,980 of them and 27 in 999; it is centred in the other direction, where the left or upper margin
is the wider one if they differ by a pixel; and the brightest pixel has 254 or 255 in 99 %.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from fmnist.data import SIDE

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

WORKING_SIDE = 400  # pixels; a photo is reduced to this before the search, so that one takes 50 ms
CUT_OUT = 0.05  # share of transparent pixels that makes a cut-out; rounded corners have less
FRAME = 0.03  # of the shorter side: the border that shows the background
FITS = 4  # times that the background is fitted to the border pixels close to the previous fit
TOLERANCE = 24.0  # grey levels between the background and border pixels that belong to it
UNIFORM = 0.6  # share of the border that must belong to the background; the rest may be the object's
SMOOTHING = 1.0  # pixels: standard deviation of the Gaussian filter against grain
LEAST_CONTRAST = 8.0  # grey levels
NOISE_MULTIPLE = 2.0  # of the border's 95th percentile, from which on a pixel belongs to the object
LEAST_PART = 0.1  # of the largest part's area: smaller parts are specks
LEAST_OBJECT = 0.002  # of the photo's area
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow
BRIGHTEST = 99.0  # percentile of the object's pixels that becomes 255

BLANK = "the picture is blank"


class NoObject(Exception):
    """The photo is blank, or its border is not uniform; the message says which."""


@dataclass(frozen=True)
class Found:
    """An object in a photo.

    image: of mode L, 28 x 28. box: left, upper, right, lower in the photo's pixels. dark: on a lighter background.
    """

    image: Image.Image
    box: tuple[int, int, int, int]
    dark: bool


def find(photo: Image.Image, invert: bool = False) -> Found:
    """Find the object in front of a uniform or transparent background.

    Args:
        photo: of mode RGB or RGBA.
        invert: negate the object's own tones; otherwise its pixels' difference from the background counts.

    Raises:
        NoObject: the photo is blank, or its border is not uniform.
    """
    scale = min(1, WORKING_SIDE / max(photo.size))
    size = [max(1, round(scale * side)) for side in photo.size]
    pixels = np.asarray(photo.convert("RGBA").resize(size, Image.Resampling.BOX), dtype=np.float64)
    colours, opaque = pixels[..., :3], pixels[..., 3] > 127
    if np.mean(~opaque) >= CUT_OUT and opaque.any():
        # Of black and white, the background that is further from the object.
        difference, mask = colours - (0 if colours[opaque].mean(axis=0) @ LUMINANCE > 127 else 255), opaque
    else:
        difference, mask = _separate(colours)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    values = 255 - colours @ LUMINANCE if invert else _length(difference)
    values = np.where(mask, values / max(1, np.percentile(values[mask], BRIGHTEST)), 0)
    width, height = photo.size[0] / size[0], photo.size[1] / size[1]
    return Found(
        _square(values[top:bottom, left:right]),
        (round(left * width), round(top * height), round(right * width), round(bottom * height)),
        dark=bool(difference[mask].mean(axis=0) @ LUMINANCE < 0),
    )


def _separate(colours: Floats) -> tuple[Floats, Mask]:
    # colours: (height, width, 3). Returns the difference from the background, and which pixels are the object's.
    border = _border(colours.shape[:2])
    background, belongs = _background(colours, border)
    if belongs.mean() < UNIFORM:
        raise NoObject("the border is not uniform; a plain background helps")
    difference = colours - background
    contrast = _length(ndimage.gaussian_filter(difference, (SMOOTHING, SMOOTHING, 0)))
    threshold = max(LEAST_CONTRAST, NOISE_MULTIPLE * np.percentile(contrast[border][belongs], 95))
    # The filter widens sharp edges, hence the pixel itself counts too.
    parts, _ = ndimage.label((contrast > threshold) & (_length(difference) > threshold), np.ones((3, 3)))
    areas = np.bincount(parts.ravel())
    areas[0] = 0  # the background
    if areas.max() < LEAST_OBJECT * parts.size:
        raise NoObject(BLANK)
    return difference, (areas >= LEAST_PART * areas.max())[parts] & (parts > 0)


def _border(shape: tuple[int, ...]) -> Mask:
    width = max(1, round(FRAME * min(shape)))
    border = np.ones(shape, dtype=bool)
    border[width:-width, width:-width] = False
    return border


def _background(colours: Floats, border: Mask) -> tuple[Floats, Mask]:
    # A quadratic surface per channel, as light falls off to the sides, fitted to the border without the object's
    # pixels. Returns (height, width, 3), and which border pixels belong to it.
    height, width = border.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    shown = colours[border]
    belongs = _length(shown - np.median(shown, axis=0)) < 2 * TOLERANCE
    surface = np.zeros_like(colours)
    for _ in range(FITS):
        surface = terms @ np.linalg.lstsq(terms[border][belongs], shown[belongs])[0]
        belongs = _length(shown - surface[border]) < TOLERANCE
    return surface, belongs


def _length(differences: Floats) -> Floats:
    # Root mean square over the channels, in grey levels.
    length: Floats = np.sqrt(np.mean(differences**2, axis=-1))
    return length


def _square(values: Floats) -> Image.Image:
    # values: (height, width) in [0, 1] or slightly above.
    scale = SIDE / max(values.shape)
    height, width = (max(1, round(scale * side)) for side in values.shape)
    grey = Image.fromarray(np.clip(255 * values, 0, 255).round().astype(np.uint8))
    square = Image.new("L", (SIDE, SIDE))
    square.paste(
        grey.resize((width, height), Image.Resampling.BOX), ((SIDE - width + 1) // 2, (SIDE - height + 1) // 2)
    )
    return square
