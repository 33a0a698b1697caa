"""Pictures of one trial as SVG, drawn on request from the templates in this folder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader

from fmnist.classes import CLASSES
from search.formatting import BEST_COLOUR, COLOURS, INK, percent
from search.study.record import Epoch

# In units of the pictures, which are 400 by 300; the dashboard shows them at half size.
LEFT, RIGHT, TOP, BOTTOM = 66, 380, 62, 252
CELL = 24
MOST_TICKS = 6


@dataclass(frozen=True)
class _Axis:
    """Maps values from low to high onto picture coordinates from start to end."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        step = _round_step((self.high - self.low) / MOST_TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def learning_curve(title: str, score_on: str, history: Sequence[Epoch]) -> str:
    """SVG of a trial's accuracy at each intermediate value, on the training images and the scored images.

    Args:
        score_on: name of the scored images.
        history: at least one row.
    """
    values = [value for epoch in history for value in (epoch.accuracy, epoch.train_accuracy)]
    room = max(0.05 * (max(values) - min(values)), 0.002)
    x = _Axis(0, history[-1].epoch, LEFT, RIGHT)
    y = _Axis(min(values) - room, max(values) + room, BOTTOM, TOP)
    scored = [(x.place(epoch.epoch), y.place(epoch.accuracy)) for epoch in history]
    training = [(x.place(epoch.epoch), y.place(epoch.train_accuracy)) for epoch in history]
    return _render(
        "curve.svg",
        title=f"{title}: {percent(history[-1].accuracy)} {score_on}",
        lines=[(score_on, BEST_COLOUR, "", scored), ("training", COLOURS["complete"], "2 5", training)],
        x_ticks=[(x.place(tick), f"{tick:g}") for tick in x.ticks()],
        y_ticks=[(y.place(tick), f"{100 * tick:.3g} %") for tick in y.ticks()],
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
    )


def confusion_matrix(title: str, confusion: Sequence[Sequence[int]]) -> str:
    """SVG of the images of each true class by predicted class; shades are shares of the true class.

    Args:
        confusion: (10, 10), a row for each true class.
    """
    rows = [[(count, count / max(sum(row), 1)) for count in row] for row in confusion]
    return _render("confusion.svg", title=title, classes=CLASSES, rows=rows, cell=CELL, colour=COLOURS["complete"])


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("search.dashboard", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(ink=INK, **values)
