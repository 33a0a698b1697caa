"""Log lines: their format, what they are about, and where they go.

`2026-11-28 12:03:44 INFO tiny trial 2 worker host:4711: claimed`

Each package has a logger of its name. Worker processes send their lines to the process that watches over them.
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

LONGEST, SHORT = 4000, 400  # bytes of a worker's line, as a pipe takes 4,096 whole; characters of one that was longer
PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]*(?=@)")

_subject: ContextVar[Mapping[str, str]] = ContextVar("subject", default=MappingProxyType({}))
_secrets: set[str] = set()


@contextmanager
def about(**parts: str | int) -> Iterator[None]:
    """Set the `study`, `trial` or `worker` that this thread's log lines name, in addition to those set already."""
    token = _subject.set({**_subject.get(), **{name: str(part) for name, part in parts.items()}})
    try:
        yield
    finally:
        _subject.reset(token)


def hide(*secrets: str) -> None:
    """Replace secrets with *** in every log line from now on."""
    _secrets.update(filter(None, secrets))


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(subject)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        if not hasattr(record, "subject"):  # that of a worker's record came with it
            record.subject = _about()
        return _clean(super().format(record))


def _about() -> str:
    """What this thread's lines are about, in words: `tiny trial 2 worker host:4711`."""
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
    """Hands each record to `write` as a line."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self.write = write
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))


class _ToParent(logging.Handler):
    """Sends each record to the parent process, as a line of JSON; one that the parent does not read in time is lost."""

    def __init__(self, parent: Connection) -> None:
        super().__init__()
        os.set_blocking(parent.fileno(), False)
        self.write = _into(parent.fileno())

    def emit(self, record: logging.LogRecord) -> None:
        sent: dict[str, Any] = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
        sent |= {"created": record.created, "subject": _about(), "msg": _clean(record.getMessage())}
        line = json.dumps(sent)
        self.write(line if len(line) < LONGEST else json.dumps({**sent, "msg": f"{sent['msg'][:SHORT]} ..."}))


def _to_standard_error(line: str) -> None:
    with suppress(OSError, ValueError):  # closed or full: no search ends for a line of its log
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


_handler = _Lines(_to_standard_error)


def configure(level: Level, file: Path | None = None) -> None:
    """Write the lines of this process and its workers to standard error, or append them to a file.

    Raises:
        OSError: the file cannot be written.
    """
    _handler.write = (
        _to_standard_error if file is None else _into(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666))
    )
    _install(level, _handler)


def configure_worker(level: Level, parent: Connection) -> None:
    """Send what this process logs to its parent."""
    _install(level, _ToParent(parent))


def _install(level: Level, handler: logging.Handler) -> None:
    logger = logging.getLogger("search")
    logger.setLevel(level.upper())
    logger.handlers = [handler]
    logger.propagate = False


def _into(descriptor: int) -> Callable[[str], None]:
    def write(line: str) -> None:
        with suppress(OSError):  # a full disk, or a parent that is gone: no search ends for a line of its log
            os.write(descriptor, f"{line}\n".encode(errors="replace"))

    return write


@contextmanager
def diverted(write: Callable[[str], object]) -> Iterator[None]:
    """Give `write` the lines that are for a terminal on standard error, as they would break a live view there."""
    before = _handler.write
    if before is _to_standard_error and sys.stderr.isatty():
        _handler.write = write
    try:
        yield
    finally:
        _handler.write = before


@contextmanager
def gathered() -> Iterator[Callable[[], Connection]]:
    """Log what worker processes send, as if this process had logged it.

    Yields:
        What returns the end that workers are given to write to. It is made when it is first asked for: OSError then
        says that this process may open or start nothing more.
    """
    ends: list[Connection] = []

    def relay(reader: Connection) -> None:
        with os.fdopen(reader.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
            for line in lines:
                with suppress(ValueError):  # torn: the worker was killed while it wrote
                    record = logging.makeLogRecord(json.loads(line))
                    logging.getLogger(record.name).handle(record)

    threads: list[threading.Thread] = []

    def writer() -> Connection:
        if not ends:
            reader, theirs = Pipe(duplex=False)
            thread = threading.Thread(target=relay, args=(reader,), daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                reader.close()
                theirs.close()
                raise OSError(str(error)) from error
            ends.extend((reader, theirs))
            threads.append(thread)
        return ends[1]

    try:
        yield writer
    finally:
        for thread in threads:
            reader, theirs = ends
            theirs.close()
            thread.join(timeout=1.0)  # seconds: a worker that could not be ended still holds the other end
            if not thread.is_alive():
                reader.close()
