import io
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from search.console.terminal import Interrupts, print_line, print_table, signals_deferred, signals_handled

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_requests_a_stop_and_the_second_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    notes: list[str] = []
    interrupts = Interrupts(lambda: notes.append("stopping"))
    with interrupts.installed():
        signal.raise_signal(number)
        assert (interrupts.asked, interrupts.by, notes) == (True, number, ["stopping"])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_deferred_signals_arrive_afterwards_even_after_an_error() -> None:
    arrived: list[int] = []
    with signals_handled(lambda number, _frame: arrived.append(number)):
        with signals_deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert arrived == []
        assert arrived == [signal.SIGINT, signal.SIGTERM]
        with pytest.raises(FileNotFoundError):
            interrupted()
        assert arrived[2:] == [signal.SIGTERM]


@signals_deferred()
def interrupted() -> None:
    signal.raise_signal(signal.SIGTERM)
    Path("/nosuch").stat()


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def console_of(columns: int, *, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=columns, force_terminal=terminal, color_system=None, markup=False)


def test_a_terminal_breaks_lines_between_words_but_no_command_or_path() -> None:
    console = console_of(30)
    print_line(
        console, "The search has continued since: `fmnist-search finalists my-study --output far` trains it again."
    )
    print_line(console, "Report    ", "/a folder/with a long name/report.html")
    assert shown(console) == [
        "The search has continued",
        "since:",
        "`fmnist-search finalists my-study --output far`",
        "trains it again.",
        "Report",
        "/a folder/with a long name/report.html",
    ]


def test_a_pipe_gets_unbroken_lines() -> None:
    console = console_of(30, terminal=False)
    print_line(console, "one line " * 20, "end")
    assert shown(console) == ["one line " * 20 + "end"]


LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "show_edge": False}  # as in `status`


def table_of(rows: int = 2) -> Table:
    table = Table("trial", "test accuracy", "label_smoothing", title="Best trials of s", **LOOK)
    for _ in range(rows):
        table.add_row("12 (start 3)", "92.34 %", "0.05")
    return table


@pytest.mark.parametrize("columns", [200, 60, *range(30, 46), 20, 10])
def test_a_table_keeps_its_words_whole_at_any_width(columns: int) -> None:
    console = console_of(columns)
    print_table(console, table_of())
    lines = shown(console)
    words = " ".join(lines).replace(":", "").split()
    for word in ["trial", "test", "accuracy", "label_smoothing", "12", "(start", "3)", "92.34", "%", "0.05"]:
        assert word in words, lines
    assert all(cell_len(line) <= columns or " " not in line.strip() for line in lines)


def test_a_table_uses_the_terminals_width_before_it_breaks_lines() -> None:
    wide, narrow = console_of(45), console_of(44)
    for console in (wide, narrow):
        print_table(console, table_of(1))
    assert len(shown(wide)) < len(shown(narrow))
    assert "12 (start 3)  92.34 %" in shown(wide)[-1]
