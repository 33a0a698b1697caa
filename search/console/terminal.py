"""The console of a search, and Ctrl-C and SIGTERM in the process that supervises workers."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

Handler = Callable[[int, FrameType | None], object]


def terminal() -> Console:
    """Standard output as a rich console without markup: names and descriptions are printed verbatim."""
    interactive = None if sys.stdout.isatty() else False  # overrides FORCE_COLOR
    return Console(markup=False, emoji=False, highlight=False, force_interactive=interactive)


@contextmanager
def signals_handled(handler: Handler) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with `handler` inside this context."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until this context ends, so that its body runs to completion."""
    arrived: list[int] = []
    try:
        with signals_handled(lambda number, _frame: arrived.append(number)):
            yield
    finally:
        for number in arrived:
            signal.raise_signal(number)


class Interrupts:
    """A signal handler: the first signal requests a stop after the current epochs, the second stops at once.

    Args:
        on_first: called from the signal handler, so it may set a flag but must not print.
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
        with signals_handled(self):
            yield
