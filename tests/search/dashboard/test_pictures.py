"""Pictures of trials show their recorded numbers."""

import itertools
import random
from xml.etree import ElementTree

import pytest

from fmnist.classes import CLASSES
from search.dashboard.pictures import BOTTOM, LEFT, RIGHT, TOP, confusion_matrix, learning_curve
from search.study.record import Epoch

EVIL = '</text><script>alert(1)</script>"&'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314  # it is ours


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in parsed(picture).iter(f"{SVG}text")]


def epochs(*accuracies: float) -> list[Epoch]:
    return [Epoch(number, 0.1, accuracy - 0.1, 0.2, accuracy, 5.0) for number, accuracy in enumerate(accuracies, 1)]


def lines(picture: str) -> list[list[tuple[float, float]]]:
    """The points of each line: scored accuracy, then training accuracy."""
    drawn = [line.get("points", "").split() for line in parsed(picture).iter(f"{SVG}polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line)] for line in drawn]


def test_a_curve_follows_accuracy_within_its_frame() -> None:
    scored, training = lines(learning_curve("trial 3", "test", epochs(0.8, 0.9, 0.85, 0.86)))
    assert len(scored) == len(training) == 4
    heights = [BOTTOM - y for _, y in scored]
    assert sorted(range(4), key=heights.__getitem__) == [0, 2, 3, 1]
    assert [x for x, _ in scored] == sorted(x for x, _ in scored)
    assert scored[-1][0] == RIGHT
    for x, y in scored + training:
        assert LEFT <= x <= RIGHT
        assert TOP <= y <= BOTTOM
    # the scale is linear
    assert (heights[1] - heights[0]) == pytest.approx(2 * (heights[2] - heights[0]), abs=0.3)


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_few_round_and_at_their_values(seed: int) -> None:
    draw = random.Random(seed)
    low = draw.uniform(0.1, 0.95)
    spread = draw.choice([0.0, 0.0001, 0.01, 0.3]) * (1 - low)
    history = epochs(*(low + draw.random() * spread for _ in range(draw.randint(1, 60))))
    picture = learning_curve("trial 3", "test", history)
    for anchor, axis in (("end", 1), ("middle", 0)):
        marks = [each for each in parsed(picture).iter(f"{SVG}text") if each.get("text-anchor") == anchor]
        ticks = {float((each.text or "").removesuffix(" %")): each for each in marks if each.text != "epoch"}
        assert 1 <= len(ticks) <= 8
        assert len(ticks) == len([each for each in marks if each.text != "epoch"])
        for low, high in itertools.pairwise(sorted(ticks)):
            gap = f"{high - low:.0e}"
            assert gap[0] in "125"
            assert high - low == pytest.approx(float(gap))
        values = [100 * epoch.accuracy if axis else epoch.epoch for epoch in history]
        drawn = [point[axis] for point in lines(picture)[0]]
        (least, start), (most, end) = min(zip(values, drawn, strict=True)), max(zip(values, drawn, strict=True))
        if most - least > 1:
            for value, each in ticks.items():
                place = float(each.get("xy"[axis], "")) - (6 if axis else 0)
                assert place == pytest.approx(start + (value - least) / (most - least) * (end - start), abs=3)


def test_a_curve_of_one_intermediate_value_is_two_dots() -> None:
    picture = learning_curve("trial 3", "validation", epochs(0.8))
    assert len(list(parsed(picture).iter(f"{SVG}circle"))) == 2
    assert "trial 3: 80.00 % validation" in texts(picture)


def test_a_matrix_shows_each_count_shaded_by_its_share_of_the_class() -> None:
    draw = random.Random(0)
    confusion = [[draw.randint(0, 9) if row != column else 900 + row for column in range(10)] for row in range(10)]
    confusion[4] = [0] * 10  # a class without images
    picture = confusion_matrix("trial 3", confusion)
    counts = [int(text) for text in texts(picture) if text.isdigit()]
    rows = [counts[11 * row + 1 : 11 * row + 11] for row in range(10)]  # after the column's head
    assert rows == confusion
    shades = [float(cell.get("fill-opacity", "nan")) for cell in list(parsed(picture).iter(f"{SVG}rect"))[1:]]
    expected = [count / max(sum(row), 1) for row in confusion for count in row]
    assert shades == pytest.approx(expected, abs=0.006)
    for number, name in enumerate(CLASSES):
        assert f"{number} {name}" in texts(picture)


def test_text_is_escaped() -> None:
    for picture in (learning_curve(EVIL, EVIL, epochs(0.8)), confusion_matrix(EVIL, [[1] * 10] * 10)):
        assert "<script" not in picture
        assert any(EVIL in text for text in texts(picture))
