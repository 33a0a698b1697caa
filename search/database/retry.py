"""Trouble with the database or the checkpoints: waited for where it may pass, and otherwise said in one line."""

import errno
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from search.artifacts import ArtifactError
from search.database.url import StorageError, masked, without_password

BUSY_TIMEOUT = 60  # seconds that a writer waits for another
PATIENCE = 600  # seconds for which a database that is out of reach is tried again
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
        raise StorageError(f"{masked(url)}: {reason}{_advice(own, reason)}") from error


def persistently(action: Callable[[], T], giving_up: Callable[[], bool] = lambda: False) -> T:
    """Do it again, later and later, for as long as database or checkpoints are out of reach or busy.

    Args:
        action: may be done again though its first time was committed.
        giving_up: asked before each new try; after PATIENCE the trouble is raised in any case.
    """
    troubled, pause = 0.0, FIRST_PAUSE
    while True:
        started = time.monotonic()
        try:
            result = action()
        except (SQLAlchemyError, StorageInternalError, StorageError, ArtifactError, OSError) as error:
            if not troubled or time.monotonic() - started > 2 * BUSY_TIMEOUT:  # it had worked meanwhile
                troubled, pause = time.monotonic(), FIRST_PAUSE
            waited = time.monotonic() - troubled
            if not is_transient(error) or giving_up() or waited > PATIENCE:
                raise
            left = PATIENCE - waited
            log.warning("waiting for %s for up to %.0f s more: %s", _what(error), left, reason_of(error))
        else:
            if troubled:
                log.warning("went on after %.1f s", time.monotonic() - troubled)
            return result
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # so that workers do not all come back at once
        pause = min(2 * pause, LONGEST_PAUSE)


def _what(error: BaseException) -> str:
    if isinstance(error, ArtifactError):
        return "the checkpoints' store"
    return "the file system" if isinstance(error, OSError) else "the database"


def reason_of(error: BaseException) -> str:
    """A line of what a driver said, without SQLAlchemy's statement and parameters."""
    cause: BaseException | None = error
    while isinstance(cause, StorageInternalError | StorageError) and cause.__cause__:
        cause = cause.__cause__
    return str(getattr(cause, "orig", None) or cause or error).strip().partition("\n")[0]


def is_transient(error: BaseException | None) -> bool:
    """Whether the trouble may pass by itself: a server that restarts, a lock that another holds."""
    if isinstance(error, ArtifactError):
        return error.transient
    if isinstance(error, OSError):
        return error.errno in TRANSIENT_ERRNOS
    cause = error
    while isinstance(cause, StorageInternalError | StorageError):
        cause = cause.__cause__
    if isinstance(cause, DBAPIError) and cause.connection_invalidated:
        return True
    if not isinstance(cause, OperationalError | InterfaceError):
        return False
    if isinstance(cause.orig, sqlite3.Error):
        return _code(cause.orig) & PRIMARY in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
    reason = str(cause.orig)
    return not any(mark in reason for mark in ("authentication failed", "does not exist", "pg_hba.conf"))


def _advice(error: BaseException | None, reason: str) -> str:
    """What to do about a database's error, as the end of a line that says the error."""
    if isinstance(error, sqlite3.Error):
        code = _code(error)
        return SQLITE_ADVICE.get(code) or SQLITE_ADVICE.get(code & PRIMARY, "")
    return "; start the server, or correct the URL" if "connection" in reason else ""


def _code(error: sqlite3.Error) -> int:
    """SQLite's extended result code; 0 of an error of Python's module."""
    return getattr(error, "sqlite_errorcode", 0)
