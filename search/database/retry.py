"""Errors of the database and of the artifact store: transient ones are retried, others reported in one line."""

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
from search.database.url import StorageError, displayed, without_password

PATIENCE = 600  # seconds for which an unreachable database is retried
SILENCE = 10.0  # seconds without an answer before a warning, and between two warnings
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds between two attempts
# What a network file system reports while its server is down; not a full disk or a missing folder.
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

PRIMARY = 0xFF  # mask of the primary code in SQLite's extended result code
_FREE_SPACE = "; free some disk space and run again: the data stored so far is intact"
_STOP_OTHER = "; stop the program that has locked it and run again"
_CORRUPT = "; the file is corrupt: move it away, or name another with --storage"
_WRITABLE = "; make the file and its folder writable"
SQLITE_ADVICE = {
    sqlite3.SQLITE_NOTADB: "; the file is corrupt or of another type: move it away, or name another with --storage",
    sqlite3.SQLITE_CORRUPT: _CORRUPT,
    sqlite3.SQLITE_ERROR: _CORRUPT,  # for example a missing table
    sqlite3.SQLITE_BUSY: _STOP_OTHER,
    sqlite3.SQLITE_LOCKED: _STOP_OTHER,
    sqlite3.SQLITE_CANTOPEN: "; make its folder writable, or name another with --storage",
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_PERM: _WRITABLE,
    sqlite3.SQLITE_FULL: _FREE_SPACE,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FREE_SPACE,
    sqlite3.SQLITE_IOERR_SHORT_READ: "; its -wal file was deleted while in use: stop all commands that use it "
    "and run again",
    sqlite3.SQLITE_IOERR: "; check the disk for errors and quotas, and run again",
}

# PostgreSQL's error codes (appendix A of its manual): class 08, the connection; 57P, the server stops, starts or ended
# our session (but not 57P04, the database was dropped); 25P03, idle in a transaction; 53, out of memory or connections
# (but not 53100, disk full); conflicts with others: serialization failure, deadlock, lock timeout, cancellation.
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
    "08P01": "; behind a connection pooler, give its pool at least two connections",
    "42501": "; grant that role read and write access to the tables, or name another role in the URL",
    "25006": "; name the primary server, or grant that role write access",
    "22P05": "; use a database with the encoding UTF8",
    "53100": "; free some disk space on the server and run again: the data stored so far is intact",
    "26000": "; behind a connection pooler, remove prepare_threshold from the URL",
    "42P05": "; behind a connection pooler, remove prepare_threshold from the URL",
}

T = TypeVar("T")

log = logging.getLogger(__package__)


@contextmanager
def reported(url: str) -> Iterator[None]:
    """Turn the database's errors into a StorageError of one line that names the database without its password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        own = getattr(cause, "orig", None) or cause
        reason = without_password(str(own).strip().splitlines()[0], url)
        raise StorageError(f"{displayed(url)}: {reason}{_advice(own)}") from error


def retry(
    action: Callable[[], T],
    giving_up: Callable[[], bool] = lambda: False,
    *,
    reached: bool = True,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Call `action`, and retry with growing pauses while the database or the artifact store is unreachable or busy.

    After PATIENCE seconds the error is raised.

    Args:
        action: must be idempotent: it may be repeated after a commit whose answer was lost.
        giving_up: whether to raise the error instead of trying again.
        reached: whether the database has answered before. If not, an unreachable one is raised at once, because most
            likely its URL is wrong.
        progress: for a long action, a counter that rises only while it works; a rise restarts PATIENCE.
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
                log.warning("resumed after %.1f s", time.monotonic() - began)
            return result
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, so that workers do not retry in step
        pause = min(2 * pause, LONGEST_PAUSE)


class Watch:
    """Logs statements without an answer: blocked by a lock, or by a pooler without a free connection.

    One thread watches all statements of the process. It cancels none; timeouts belong to the server or SQLite.
    """

    def __init__(self) -> None:
        self.begun: dict[int, tuple[float, Context]] = {}  # by thread: start of its statement, and its log context
        self.warned: dict[int, float] = {}  # by thread: time of the last warning
        self.starting = threading.Lock()
        self.thread: threading.Thread | None = None

    def over(self, engine: Engine) -> None:
        """Watch all statements of an engine; call it after all other listeners are registered."""
        event.listen(engine, "do_connect", self._begin)  # includes SQLAlchemy's own statements on a new connection
        event.listen(engine, "engine_connect", self._end)
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)
        event.listen(engine, "handle_error", self._end)

    def _begin(self, *_: object) -> None:
        self.begun[threading.get_ident()] = time.monotonic(), copy_context()
        if self.thread is None:
            with self.starting, suppress(RuntimeError):  # no more threads can be started: do without warnings
                if self.thread is None:
                    thread = threading.Thread(target=self._look, daemon=True)
                    thread.start()
                    self.thread = thread

    def _end(self, *_: object) -> None:
        begun = self.begun.pop(threading.get_ident(), None)
        if begun and self.warned.pop(threading.get_ident(), None):
            log.warning("resumed after %.1f s", time.monotonic() - begun[0])

    def _look(self) -> None:
        while True:
            time.sleep(SILENCE / 4)
            for thread, (begun, context) in list(self.begun.items()):
                now = time.monotonic()
                if now - max(begun, self.warned.get(thread, begun)) > SILENCE:
                    self.warned[thread] = now
                    context.run(log.warning, "waiting for the database: no answer for %.0f s so far", now - begun)


watch = Watch()


def _what(error: BaseException) -> str:
    if isinstance(error, ArtifactError):
        return "the artifact store"
    return "the file system" if isinstance(error, OSError) else "the database"


def message_of(error: BaseException) -> str:
    """First line of the driver's message, without SQLAlchemy's statement and parameters."""
    cause = _cause(error)
    return str(getattr(cause, "orig", None) or cause or error).strip().partition("\n")[0]


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, StorageInternalError | StorageError) and error.__cause__:
        error = error.__cause__
    return error


def is_transient(error: BaseException) -> bool:
    """Whether the error may pass by itself, such as a server that restarts or a lock that another process holds."""
    if isinstance(error, ArtifactError):
        return error.transient
    if isinstance(error, OSError):
        return error.errno in TRANSIENT_ERRNOS
    cause = _cause(error)
    if isinstance(cause, PoolTimeoutError | PendingRollbackError):  # pool exhausted; a lost connection used again
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if isinstance(cause.orig, sqlite3.Error):
        return _code(cause.orig) & PRIMARY in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
    state = _sqlstate(cause)
    if state is None:  # an error of the driver: no connection, or it was lost
        return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)
    return state.startswith(TRANSIENT_SQLSTATES)


def _answered(error: BaseException) -> bool:
    # Whether the error came from a server. A refused connection has no code: the driver drops it.
    cause = _cause(error)
    return isinstance(cause, DBAPIError) and (cause.connection_invalidated or _sqlstate(cause) is not None)


def _sqlstate(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _advice(error: BaseException | None) -> str:
    if isinstance(error, sqlite3.Error):
        code = _code(error)
        return SQLITE_ADVICE.get(code) or SQLITE_ADVICE.get(code & PRIMARY, "")
    if getattr(getattr(error, "pgconn", None), "needs_password", False):
        return "; set PGPASSWORD, or write the password to ~/.pgpass"
    state = getattr(error, "sqlstate", "")  # None where there is no connection
    return "; start the server, or correct the URL" if state is None else SQLSTATE_ADVICE.get(state, "")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0)  # errors raised by Python's module itself have none
