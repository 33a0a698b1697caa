"""A view that is drawn again and again in its place, and a terminal that is left whole by whatever ends it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live

from search.interrupts import held_back

ECHO = 4  # columns left free: the terminal's echo of two Ctrl-C in them begins no line that nobody would erase
REFRESH = 2  # times a second: what a slow connection bears


@contextmanager
def live_view(console: Console, draw: Callable[[], RenderableType], *, stays: bool) -> Iterator[None]:
    """Show what `draw` returns at the end of a terminal, until this is over.

    The cursor is not hidden, so that what ends a process without asking it (`kill -9`) or stops it (Ctrl-Z) does
    not leave a terminal without one. No signal interrupts the last drawing.

    Args:
        stays: whether it is still to be seen afterwards.
    """
    over = False

    def drawn() -> RenderableType:  # at last rich would let a view that is to go overflow the terminal
        return "" if over and not stays else Constrain(draw(), console.width - ECHO)

    live = Live(console=console, get_renderable=drawn, refresh_per_second=REFRESH, transient=not stays)
    try:
        with held_back():
            live.start()
            console.show_cursor(True)
        yield
    finally:
        over = True
        with held_back():
            live.stop()
