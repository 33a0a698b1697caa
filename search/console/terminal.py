"""The console of a search, its lines and tables, and Ctrl-C and SIGTERM in the process that supervises workers."""

import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

Handler = Callable[[int, FrameType | None], object]


UNLIMITED = 10_000  # columns of a pipe or a file: a table there has its natural width
BLANK = "\0"  # a space at which no line is broken


def terminal() -> Console:
    """Standard output as a rich console without markup: names and descriptions are printed verbatim."""
    interactive = None if sys.stdout.isatty() else False  # overrides FORCE_COLOR
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal() else UNLIMITED
    return Console(markup=False, emoji=False, highlight=False, force_interactive=interactive, width=width)


def print_line(console: Console, text: str, unbroken: str = "") -> None:
    """Print a line, on a terminal broken between words.

    Commands in backticks are not broken, so that they can be pasted: a terminal joins what it wraps itself.

    Args:
        unbroken: a command or a path to print after the text.
    """
    line = text + unbroken
    if console.is_terminal:
        kept = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", BLANK), text) + unbroken.replace(" ", BLANK)
        filled = textwrap.fill(kept, console.width, break_long_words=False, break_on_hyphens=False)
        line = filled.replace(BLANK, " ")
    console.print(line, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table whose headers and cells are broken between words; as a list of rows where it is too narrow."""
    cells = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    natural = [max(map(cell_len, column)) for column in cells]
    longest = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    spare = console.width - sum(longest) - 2 * len(cells) + 1  # after each a space, and one between two
    if spare < 0:
        _print_rows(console, table, cells)
        return
    for left, place in enumerate(sorted(range(len(cells)), key=lambda place: natural[place] - longest[place])):
        more = min(natural[place] - longest[place], spare // (len(cells) - left))
        table.columns[place].width, spare = longest[place] + more, spare - more
    console.print(table)


def _print_rows(console: Console, table: Table, cells: list[list[str]]) -> None:
    if table.title:
        print_line(console, str(table.title))
    for row in range(table.row_count):
        console.print()
        for header, *values in cells:
            print_line(console, f"{header}: {values[row]}" if header else values[row])


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
