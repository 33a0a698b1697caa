"""Small pictures as data URIs: images that were mistaken, and filters."""

import base64
from io import BytesIO

import numpy as np
from PIL import Image

NEGATIVE, POSITIVE = np.array([0, 114, 178]), np.array([213, 94, 0])  # Okabe and Ito's blue and vermilion


def grey(pixels: list[list[int]]) -> str:
    """An image of the data set: rows of pixels from 0 to 255."""
    return _uri(np.array(pixels, dtype=np.uint8))


def diverging(weights: list[list[float]], scale: float) -> str:
    """A filter: white where a weight is 0, blue down to -scale, vermilion up to scale."""
    shares = np.clip(np.array(weights) / (scale or 1), -1, 1)[..., None]
    colours = 255 + np.abs(shares) * (np.where(shares < 0, NEGATIVE, POSITIVE) - 255)
    return _uri(colours.round().astype(np.uint8))


def _uri(pixels: np.ndarray) -> str:
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
