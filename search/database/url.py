"""Database URLs: parsing, validation, masking of passwords, and warnings about where a database is."""

import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from fmnist.errors import ExpectedError
from fmnist.files import expand
from search.choices import OUTPUT
from search.outputs import DATABASE

BUSY_TIMEOUT = 60  # seconds that a writer waits for another
CONNECT_TIMEOUT = 10  # seconds within which a server must accept a connection; the driver's own are 130
KEEPALIVE = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
OURS = ("autocommit", "context", "cursor_factory", "row_factory")  # what the driver takes, but not from a URL
SQLITE_WORKERS = 8  # that SQLite serves without much waiting
NETWORKED = ("nfs", "cifs", "smb", "afs", "9p", "ceph", "lustre", "gpfs", "fuse.sshfs", "fuse.gluster", "fuse.s3")


class StorageError(ExpectedError):
    """The database cannot be reached or used; the message says what to do, without a password."""


class DatabaseGone(StorageError):
    """A file of an SQLite database was deleted while in use: what would be stored from then on could be lost."""


def default_url(output: Path) -> str:
    """The embedded database of an output folder.

    Raises:
        StorageError: the folder's name is not valid UTF-8.
    """
    return sqlite_url(output / DATABASE)


def url_of(storage: str | None, output: Path | None) -> str:
    """The database that is meant: the given one, else that of the output folder."""
    return storage or default_url(output or OUTPUT)


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite database; what has a meaning in URLs is quoted.

    Raises:
        StorageError: the file's path is not valid UTF-8.
    """
    try:
        return URL.create("sqlite", database=str(file)).render_as_string()
    except UnicodeEncodeError:  # bytes that Python keeps as lone surrogates; Optuna takes its database as text
        raise StorageError(f"{str(file)!a}: not valid UTF-8; name another place with --output") from None


def parse(url: str) -> URL:
    """Check a storage URL; `postgresql://` is taken to mean psycopg 3.

    Raises:
        StorageError: it is malformed, in memory, or of another database.
    """
    try:
        url.encode()
        parsed = make_url(url)
    except UnicodeEncodeError:
        raise StorageError(f"{url!a}: not valid UTF-8; name another database with --storage") from None
    except (ArgumentError, ValueError):
        raise StorageError(
            "the storage URL is malformed; write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise StorageError(
            f"{parsed.drivername}: no such storage; use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    if parsed.drivername == "sqlite" and (parsed.database or "").startswith("~"):
        parsed = parsed.set(database=str(expand(parsed.database or "")))
    if "@" in (parsed.host or "") or (parsed.host and "@" in (parsed.database or "")):
        raise StorageError("the storage URL has more than one @; write one in a user name or password as %40")
    if parsed.drivername == "sqlite" and parsed.host:
        raise StorageError(
            f"sqlite://{parsed.host}: names a host; write sqlite:///{parsed.host}/{parsed.database or ''}"
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError("a database in memory cannot be shared by workers; write sqlite:///FILE")
    return parsed


def absolute(url: str) -> URL:
    """The URL as it means the same in any working directory.

    The operating system resolves an SQLite file's path here: SQLAlchemy removes `..` by name, and so would open
    another file than everybody else does where the folder before it is a symbolic link.
    """
    parsed = parse(url)
    return parsed.set(database=str(file.resolve())) if (file := file_of(url)) else parsed


def connect_args(url: str, seconds: int | None = None) -> dict[str, Any]:
    """What the driver is given beside the URL, of which it would take numbers for text.

    Statements are not prepared on a server unless the URL has `prepare_threshold`: PgBouncer's transaction mode gives
    each transaction another connection, on which what was prepared is not known.

    Args:
        seconds: to wait for another writer of SQLite, or for a connection to a server; None for the defaults.

    Raises:
        StorageError: the URL has an option with a wrong value, or one that is not the user's to set.
    """
    parsed = parse(url)
    if parsed.drivername == "sqlite":
        return {"timeout": BUSY_TIMEOUT if seconds is None else seconds}
    for name in OURS:
        if name in parsed.query:
            raise StorageError(f"{masked(url)}: leave out the option {name}, which fmnist-search sets")
    chosen = _number(url, "connect_timeout")
    return {
        "connect_timeout": (CONNECT_TIMEOUT if chosen is None else chosen) if seconds is None else seconds,
        "prepare_threshold": _number(url, "prepare_threshold"),
        # a server that vanishes is noticed within a minute or so, not after TCP's two hours
        **{name: value for name, value in KEEPALIVE.items() if name not in parsed.query},
        "client_encoding": "utf8",  # whatever the server keeps: of SQL_ASCII text would come as bytes
    }


def _number(url: str, name: str) -> int | None:
    value = parse(url).query.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.isdecimal():
        raise StorageError(f"{masked(url)}: the option {name} must be a whole number")
    return int(value)


def file_of(url: str) -> Path | None:
    """The file of an SQLite database; None of a database on a server."""
    parsed = parse(url)
    return Path(str(parsed.database)) if parsed.drivername == "sqlite" else None


def masked(url: str) -> str:
    """The URL as it may be shown: a password as ***, and no options, which may hold one too."""
    return parse(url).set(query={}).render_as_string(hide_password=True)


def options_for(url: str) -> str:
    """The options that lead a command to this database, from the folder that this one was called in."""
    file = file_of(url)
    if file is None or parse(url) != parse(default_url(file.parent)):
        return f" --storage {shlex.quote(masked(url))}"
    return "" if file.parent == OUTPUT else f" --output {shlex.quote(str(file.parent))}"


def secrets_of(url: str) -> list[str]:
    """The passwords in a URL, as they are and as they are quoted."""
    parsed = parse(url)
    secrets = [parsed.password, *(value for key, value in parsed.query.items() if "pass" in key)]
    return [form for secret in filter(None, secrets) for form in (str(secret), quote(str(secret), safe=""))]


def without_password(text: str, url: str) -> str:
    """The driver's words, in case it repeats what it was given."""
    for secret in secrets_of(url):
        text = text.replace(secret, "***")
    return text


def warnings_for(url: str, workers: int, *, cluster: bool = False) -> list[str]:
    """Warnings about a database that cannot serve that many workers, or not safely.

    cluster: whether the workers may be on several machines.
    """
    file = file_of(url)
    if file is None:
        return []
    warnings = []
    if cluster:
        warnings.append("Warning: SQLite serves workers of this machine only; use PostgreSQL for those of others.")
    if workers > SQLITE_WORKERS:
        warnings.append(f"Warning: more than {SQLITE_WORKERS} workers wait for each other on SQLite; use PostgreSQL.")
    kind = _file_system(file)
    if kind.startswith(NETWORKED):
        warnings.append(f"Warning: SQLite is not safe on a network file system ({kind}); use PostgreSQL.")
    return warnings


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, as /proc/mounts calls it; empty where that cannot be told."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return ""
    mounted = [line.split() for line in mounts.read_bytes().splitlines()]  # a space in a name is \040 there
    kinds = {Path(os.fsdecode(fields[1].decode("unicode_escape").encode("latin-1"))): fields[2] for fields in mounted}
    resolved = path.resolve()
    return next((kinds[folder].decode() for folder in (resolved, *resolved.parents) if folder in kinds), "")
