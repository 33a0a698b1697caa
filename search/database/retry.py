"""Trouble with the database or the checkpoints: waited for where it may pass, and otherwise said in one line."""

import errno
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine, event
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from search.artifacts import ArtifactError
from search.database.url import StorageError, masked, without_password

PATIENCE = 600  # seconds for which a database that is out of reach is tried again
SILENCE = 10.0  # seconds without an answer after which that is said, and between two times that it is
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds between two tries
# What a network file system reports while its server is away; a full disk or a missing folder is not among them.
TRANSIENT_ERRNOS = {
    errno.EAGAIN,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}

PRIMARY = 0xFF  # the bits of an SQLite result code that are its kind; the others are details
_FREE_SPACE = "; free some space and run again: what was stored is whole"
_END_THE_OTHER = "; another program keeps it to itself: end that program and run again"
_BROKEN = "; the file is broken: move it away, or name another with --storage"
_WRITABLE = "; make the file and its folder writable"
SQLITE_ADVICE = {
    sqlite3.SQLITE_NOTADB: "; the file is broken or of another kind: move it away, or name another with --storage",
    sqlite3.SQLITE_CORRUPT: _BROKEN,
    sqlite3.SQLITE_ERROR: _BROKEN,  # such as a table that is not there any more
    sqlite3.SQLITE_BUSY: _END_THE_OTHER,
    sqlite3.SQLITE_LOCKED: _END_THE_OTHER,
    sqlite3.SQLITE_CANTOPEN: "; make its folder one that can be written, or name another with --storage",
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_PERM: _WRITABLE,
    sqlite3.SQLITE_FULL: _FREE_SPACE,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FREE_SPACE,
    sqlite3.SQLITE_IOERR_SHORT_READ: "; its -wal file was deleted while in use: end all commands that use it, "
    "and run again",
    sqlite3.SQLITE_IOERR: "; check its disk for errors and quotas, and run again",
}

# PostgreSQL's codes (appendix A of its manual): class 08, the connection; 57P, the server ends, starts or had to end us
# (but not 57P04, the database was dropped); 25P03, idle in a transaction; 53, it has no memory or connection left (but
# not 53100, its disk is full); what is lost to others: a serialization failure, a deadlock, a lock, a cancellation.
TRANSIENT_SQLSTATES = (
    "08",
    "57P01",
    "57P02",
    "57P03",
    "57P05",
    "25P03",
    "53200",
    "53300",
    "40001",
    "40P01",
    "55P03",
    "57014",
)
SQLSTATE_ADVICE = {
    "08P01": "; if a pooler is between, give its pool two connections or more",
    "42501": "; let that role read and write the tables, or name another in the URL",
    "25006": "; name the primary server, or let that role write",
    "22P05": "; use a database with the encoding UTF8",
    "53100": "; free some space there and run again: what was stored is whole",
    "26000": "; leave prepare_threshold out of the URL: a pooler is between",
    "42P05": "; leave prepare_threshold out of the URL: a pooler is between",
}

T = TypeVar("T")

log = logging.getLogger(__package__)


@contextmanager
def reported(url: str) -> Iterator[None]:
    """Turn a database's own errors into one line that names the database, not its password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        own = getattr(cause, "orig", None) or cause
        reason = without_password(str(own).strip().splitlines()[0], url)
        raise StorageError(f"{masked(url)}: {reason}{_advice(own)}") from error


def retry(
    action: Callable[[], T],
    giving_up: Callable[[], bool] = lambda: False,
    *,
    reached: bool = True,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Call `action`, and retry with growing pauses while the database or the checkpoint store is unreachable or busy.

    Args:
        action: may be done again though its first time was committed.
        giving_up: asked before each new try; PATIENCE seconds after the trouble began it is raised in any case.
        reached: whether the database was ever in reach. If not, one that does not answer is raised at once: most
            likely its URL is wrong.
        progress: of a long action, a number that rises only while all is well. The trouble that comes after that is
            another one.
    """
    began: float | None = None
    so_far, pause = progress(), FIRST_PAUSE
    while True:
        try:
            result = action()
        except (SQLAlchemyError, StorageInternalError, StorageError, ArtifactError, OSError) as error:
            if began is None or progress() > so_far:
                began, so_far, pause = time.monotonic(), progress(), FIRST_PAUSE
            left = PATIENCE - (time.monotonic() - began)
            if not is_transient(error) or not (reached or _answered(error)) or giving_up() or left < 0:
                raise
            log.warning("waiting for %s for up to %.0f s more: %s", _what(error), left, message_of(error))
        else:
            if began is not None:
                log.warning("went on after %.1f s", time.monotonic() - began)
            return result
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # so that workers do not all come back at once
        pause = min(2 * pause, LONGEST_PAUSE)


class Watch:
    """Logs statements that get no answer: blocked by a lock, or by a pooler without a free connection.

    One thread watches all statements of a process. It never cancels one; timeouts belong to the server or SQLite.
    """

    def __init__(self) -> None:
        self.begun: dict[int, tuple[float, Context]] = {}  # by thread: since when it waits, and what it is about
        self.said: dict[int, float] = {}  # by thread: when that was said last
        self.starting = threading.Lock()
        self.thread: threading.Thread | None = None

    def over(self, engine: Engine) -> None:
        """Watch all statements of an engine, whose other listeners are there already."""
        event.listen(engine, "do_connect", self._begin)  # and what SQLAlchemy itself asks of a new connection
        event.listen(engine, "engine_connect", self._end)
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)
        event.listen(engine, "handle_error", self._end)

    def _begin(self, *_: object) -> None:
        self.begun[threading.get_ident()] = time.monotonic(), copy_context()
        if self.thread is None:
            with self.starting, suppress(RuntimeError):  # no more threads may be started: nothing is said then
                if self.thread is None:
                    thread = threading.Thread(target=self._look, daemon=True)
                    thread.start()
                    self.thread = thread

    def _end(self, *_: object) -> None:
        begun = self.begun.pop(threading.get_ident(), None)
        if begun and self.said.pop(threading.get_ident(), None):
            log.warning("went on after %.1f s", time.monotonic() - begun[0])

    def _look(self) -> None:
        while True:
            time.sleep(SILENCE / 4)
            for thread, (begun, context) in list(self.begun.items()):
                now = time.monotonic()
                if now - max(begun, self.said.get(thread, begun)) > SILENCE:
                    self.said[thread] = now
                    context.run(log.warning, "waiting for the database: no answer for %.0f s so far", now - begun)


watch = Watch()


def _what(error: BaseException) -> str:
    if isinstance(error, ArtifactError):
        return "the checkpoints' store"
    return "the file system" if isinstance(error, OSError) else "the database"


def message_of(error: BaseException) -> str:
    """What a driver said, in a line, without SQLAlchemy's statement and parameters."""
    cause = _cause(error)
    return str(getattr(cause, "orig", None) or cause or error).strip().partition("\n")[0]


def _cause(error: BaseException) -> BaseException:
    """SQLAlchemy's error, of those that it is raised as."""
    while isinstance(error, StorageInternalError | StorageError) and error.__cause__:
        error = error.__cause__
    return error


def is_transient(error: BaseException) -> bool:
    """Whether the trouble may pass by itself: a server that restarts, a lock that another holds."""
    if isinstance(error, ArtifactError):
        return error.transient
    if isinstance(error, OSError):
        return error.errno in TRANSIENT_ERRNOS
    cause = _cause(error)
    if isinstance(
        cause, PoolTimeoutError | PendingRollbackError
    ):  # the pool is used up; a lost connection was used again
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if isinstance(cause.orig, sqlite3.Error):
        return _code(cause.orig) & PRIMARY in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
    state = _sqlstate(cause)
    if state is None:  # the driver's own: there is no connection, or it was lost
        return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)
    return state.startswith(TRANSIENT_SQLSTATES)


def _answered(error: BaseException) -> bool:
    """Whether a server said so. What it says to one that may not connect has no code, as the driver drops it."""
    cause = _cause(error)
    return isinstance(cause, DBAPIError) and (cause.connection_invalidated or _sqlstate(cause) is not None)


def _sqlstate(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _advice(error: BaseException | None) -> str:
    """What to do about a driver's error, as the end of a line that says the error."""
    if isinstance(error, sqlite3.Error):
        code = _code(error)
        return SQLITE_ADVICE.get(code) or SQLITE_ADVICE.get(code & PRIMARY, "")
    state = getattr(error, "sqlstate", "")  # None where there is no connection
    return "; start the server, or correct the URL" if state is None else SQLSTATE_ADVICE.get(state, "")


def _code(error: sqlite3.Error) -> int:
    """SQLite's extended result code; 0 of an error of Python's module."""
    return getattr(error, "sqlite_errorcode", 0)
