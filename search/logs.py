"""Log lines: their format, what they are about, and where they go.

`2026-11-28 12:03:44 INFO tiny trial 2 worker host:4711: claimed`

Each package has a logger of its name. Worker processes send their lines to the process that watches over them.
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, get_args

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)

LONGEST_LINE = 4000  # bytes: up to 4,096 a pipe takes whole, whoever else writes into it
PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]*(?=@)")

_subject: ContextVar[str] = ContextVar("subject", default="fmnist-search")


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Let the log lines of this thread be about a subject, such as `tiny trial 2 worker host:4711`."""
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(subject)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.subject = _subject.get()
        return PASSWORD.sub(r"\1:***", " ".join(super().format(record).split()))


class _Lines(logging.Handler):
    """Hands each record to `write` as a line."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self.write = write
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))


def _to_terminal(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_handler = _Lines(_to_terminal)


def configure(level: Level, file: Path | None = None) -> None:
    """Write the lines of this process and its workers to standard error, or append them to a file.

    Raises:
        OSError: the file cannot be written.
    """
    _handler.write = (
        _to_terminal if file is None else _into(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666))
    )
    _install(level)


def configure_worker(level: Level, parent: Connection) -> None:
    """Send the lines of this process to its parent; those that the parent does not read in time are lost."""
    os.set_blocking(parent.fileno(), False)
    _handler.write = _into(parent.fileno())
    _install(level)


def _install(level: Level) -> None:
    logger = logging.getLogger("search")
    logger.setLevel(level.upper())
    logger.handlers = [_handler]
    logger.propagate = False


def _into(descriptor: int) -> Callable[[str], None]:
    def write(line: str) -> None:
        with suppress(OSError):  # a full disk, or a parent that is gone: no search ends for a line of its log
            os.write(descriptor, line.encode(errors="replace")[:LONGEST_LINE] + b"\n")

    return write


@contextmanager
def diverted(write: Callable[[str], object]) -> Iterator[None]:
    """Give `write` the lines that are for standard error, which would break a live view on the same terminal."""
    before = _handler.write
    if before is _to_terminal:
        _handler.write = write
    try:
        yield
    finally:
        _handler.write = before


@contextmanager
def gathered() -> Iterator[Callable[[], Connection]]:
    """Write the lines of worker processes where those of this process go.

    Yields:
        What returns the end that workers are given to write to. It is made when it is first asked for: OSError then
        says that this process may open nothing more.
    """
    ends: list[Connection] = []

    def relay() -> None:
        with os.fdopen(ends[0].fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
            for line in lines:
                _handler.write(line.rstrip("\n"))

    thread = threading.Thread(target=relay, daemon=True)

    def writer() -> Connection:
        if not ends:
            ends.extend(Pipe(duplex=False))
            thread.start()
        return ends[1]

    try:
        yield writer
    finally:
        if ends:
            reader, theirs = ends
            theirs.close()
            thread.join(timeout=1.0)  # seconds: a worker that could not be ended still holds the other end
            if not thread.is_alive():
                reader.close()
