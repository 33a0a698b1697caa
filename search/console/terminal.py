"""The terminal of a search: what is printed there, and Ctrl-C and SIGTERM in the process that watches over workers."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

Handler = Callable[[int, FrameType | None], object]


def terminal() -> Console:
    """Standard output. What is printed there is printed as it is: names and descriptions are not rich's markup."""
    interactive = None if sys.stdout.isatty() else False  # whatever FORCE_COLOR says
    return Console(markup=False, emoji=False, highlight=False, force_interactive=interactive)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Give both signals to a handler, until this is over."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def held_back() -> Iterator[None]:
    """Let both signals wait until this is over: what is done in it is done whole."""
    arrived: list[int] = []
    try:
        with handled(lambda number, _frame: arrived.append(number)):
            yield
    finally:
        for number in arrived:
            signal.raise_signal(number)


class Interrupts:
    """The first asks to stop after the running epochs, the second at once.

    Args:
        on_first: is called in a signal's handler, so it may set something but not print.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.asked = False
        self.by: int | None = None
        self.on_first = on_first

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.by = True, number
        self.on_first()

    @contextmanager
    def installed(self) -> Iterator[None]:
        with handled(self):
            yield
