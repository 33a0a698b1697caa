"""Ctrl-C and SIGTERM in the process that watches over workers."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
        before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
