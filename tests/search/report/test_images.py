"""Images as data URIs."""

import base64
from io import BytesIO

import numpy as np
from PIL import Image

from search.report.network import diverging, grey


def decoded(uri: str) -> np.ndarray:
    head, content = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(BytesIO(base64.b64decode(content))))


def test_an_image_survives_encoding_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28)).tolist()
    assert decoded(grey(pixels)).tolist() == pixels


def test_a_filter_is_white_at_0_and_more_saturated_away_from_it() -> None:
    (first, second, middle, fourth, last) = decoded(diverging([[-2.0, -1.0, 0.0, 1.0, 2.0]], 2.0))[0].astype(int)
    assert middle.tolist() == [255, 255, 255]
    assert first[2] > first[0]  # blue
    assert last[0] > last[2]  # vermilion
    for strong, weak in ((first, second), (last, fourth)):
        assert strong.sum() < weak.sum() < middle.sum()
    assert decoded(diverging([[9.0]], 2.0))[0, 0].tolist() == last.tolist()  # beyond the scale


def test_filters_of_zeros_are_white() -> None:
    assert decoded(diverging([[0.0, 0.0]], 0.0)).min() == 255
