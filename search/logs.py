"""Logging: line format, the study, trial or worker that a line is about, and destinations.

`2026-11-28 12:03:44 INFO tiny trial 2 worker host:4711: claimed`

Each package logs under its name. Worker processes send their records to the process that supervises them.
"""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)

LONGEST = 4000  # bytes of a worker's line: a pipe writes up to 4,096 atomically
SHORT = 400  # characters to which the message of a longer line is cut
PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]*(?=@)")

_subject: ContextVar[Mapping[str, str]] = ContextVar("subject", default=MappingProxyType({}))
_secrets: set[str] = set()


@contextmanager
def about(**parts: str | int) -> Iterator[None]:
    """Set the `study`, `trial` or `worker` shown in this thread's log lines, in addition to those already set."""
    token = _subject.set({**_subject.get(), **{name: str(part) for name, part in parts.items()}})
    try:
        yield
    finally:
        _subject.reset(token)


def hide(*secrets: str) -> None:
    """Replace secrets by *** in all later log lines."""
    _secrets.update(filter(None, secrets))


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(subject)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        if not hasattr(record, "subject"):  # a worker's record arrives with it
            record.subject = _current_subject()
        return _clean(super().format(record))


def _current_subject() -> str:
    """What this thread's lines are about: `tiny trial 2 worker host:4711`."""
    parts = _subject.get()
    named = (
        parts[name] if name == "study" else f"{name} {parts[name]}"
        for name in ("study", "trial", "worker")
        if name in parts
    )
    return " ".join(named) or "fmnist-search"


def _clean(text: str) -> str:
    text = PASSWORD.sub(r"\1:***", " ".join(text.split()))
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


class _Lines(logging.Handler):
    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self.write = write
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))


class _ToParent(logging.Handler):
    """Sends each record to the parent process as a line of JSON."""

    def __init__(self, parent: Connection) -> None:
        super().__init__()
        os.set_blocking(parent.fileno(), False)  # rather lose a line than wait for a parent that does not read
        self.write = _into(parent.fileno())

    def emit(self, record: logging.LogRecord) -> None:
        sent: dict[str, Any] = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
        sent |= {"created": record.created, "subject": _current_subject(), "msg": _clean(record.getMessage())}
        line = json.dumps(sent)
        self.write(line if len(line) < LONGEST else json.dumps({**sent, "msg": f"{sent['msg'][:SHORT]} ..."}))


def _to_standard_error(line: str) -> None:
    with suppress(OSError, ValueError):  # closed or full: a lost log line must not stop a search
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


_handler = _Lines(_to_standard_error)


def configure(level: Level, file: Path | None = None) -> None:
    """Log this process and its workers to standard error, or append to a file.

    Raises:
        OSError: the file is not writable.
    """
    _handler.write = (
        _to_standard_error if file is None else _into(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666))
    )
    _install(level, _handler)


def configure_worker(level: Level, parent: Connection) -> None:
    """Send the log records of this process to its parent."""
    _install(level, _ToParent(parent))


def _install(level: Level, handler: logging.Handler) -> None:
    logger = logging.getLogger("search")
    logger.setLevel(level.upper())
    logger.handlers = [handler]
    logger.propagate = False


def _into(descriptor: int) -> Callable[[str], None]:
    def write(line: str) -> None:
        with suppress(OSError):  # full disk, or parent has ended: a lost log line must not stop a search
            os.write(descriptor, f"{line}\n".encode(errors="replace"))

    return write


@contextmanager
def diverted(write: Callable[[str], object]) -> Iterator[None]:
    """Inside this context, pass lines for a terminal to `write`: on standard error they would break a live view."""
    before = _handler.write
    if before is _to_standard_error and sys.stderr.isatty():
        _handler.write = write
    try:
        yield
    finally:
        _handler.write = before


@contextmanager
def gathered() -> Iterator[Callable[[], Connection]]:
    """Log the records that worker processes send.

    Yields:
        A function that returns the connection for workers to write to, opened at the first call. It raises OSError if
        this process cannot open another file or start another thread.
    """
    ends: list[Connection] = []

    def relay(reader: Connection) -> None:
        with os.fdopen(reader.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
            for line in lines:
                with suppress(ValueError):  # incomplete: the worker was killed while writing
                    record = logging.makeLogRecord(json.loads(line))
                    logging.getLogger(record.name).handle(record)

    threads: list[threading.Thread] = []

    def writer() -> Connection:
        if not ends:
            reader, worker_end = Pipe(duplex=False)
            thread = threading.Thread(target=relay, args=(reader,), daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                reader.close()
                worker_end.close()
                raise OSError(str(error)) from error
            ends.extend((reader, worker_end))
            threads.append(thread)
        return ends[1]

    try:
        yield writer
    finally:
        for thread in threads:
            reader, worker_end = ends
            worker_end.close()
            thread.join(timeout=1.0)  # seconds: a worker that could not be killed still holds the other end
            if not thread.is_alive():
                reader.close()
