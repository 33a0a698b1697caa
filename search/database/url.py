"""Database URLs: validation, passwords kept out of output, options for printed commands, unsuitable databases."""

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from fmnist.errors import ExpectedError
from fmnist.files import expand
from search.choices import OUTPUT
from search.outputs import DATABASE

BUSY_TIMEOUT = 60  # seconds for which a writer waits for another
CONNECT_TIMEOUT = 10  # seconds for a server to accept a connection; the driver's default is 130
KEEPALIVE = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
OURS = ("autocommit", "context", "cursor_factory", "row_factory")  # arguments of the driver that a URL must not set
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")  # libpq's options
SQLITE_WORKERS = 8  # more spend much of their time waiting for SQLite's single writer
NETWORKED = ("nfs", "cifs", "smb", "afs", "9p", "ceph", "lustre", "gpfs", "fuse.sshfs", "fuse.gluster", "fuse.s3")


class StorageError(ExpectedError):
    """The database cannot be reached or used; the message says what to do and contains no password."""


class NoStudies(StorageError):
    """The database does not exist yet, or is empty."""


class DatabaseGone(StorageError):
    """A file of an SQLite database was deleted while in use, so that further writes could be lost."""


def default_url(output: Path) -> str:
    """The URL of the SQLite database in an output folder.

    Raises:
        StorageError: the folder's name is not valid UTF-8.
    """
    return sqlite_url(output / DATABASE)


def url_of(storage: str | None, output: Path | None) -> str:
    """The given URL, else that of the SQLite database in the output folder."""
    return storage or default_url(output or OUTPUT)


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite database, with reserved characters quoted.

    Raises:
        StorageError: the file's path is not valid UTF-8.
    """
    try:
        return URL.create("sqlite", database=_typed(file)).render_as_string()
    except UnicodeEncodeError:  # Python keeps invalid bytes as lone surrogates; Optuna takes its URL as text
        raise StorageError(f"{str(file)!a}: not valid UTF-8; name another folder with --output") from None


def _typed(path: Path) -> str:
    # Where a user types a path, ~ at its start is the home folder.
    return f"./{path}" if str(path).startswith("~") else str(path)


def parse(url: str) -> URL:
    """Validate a storage URL; `postgresql://` selects psycopg 3.

    Raises:
        StorageError: it is malformed, in memory, or of an unsupported database.
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
            f"{parsed.drivername}: unsupported database; use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    if parsed.drivername != "sqlite" and (parsed.host or "").upper().startswith("%2F"):
        parsed = _with_socket_folder(parsed)
    if parsed.drivername == "sqlite" and (parsed.database or "").startswith("~"):
        parsed = parsed.set(database=str(expand(parsed.database or "")))
    if "@" in (parsed.host or "") or (parsed.host and "@" in (parsed.database or "")):
        raise StorageError("the storage URL has more than one @; write one in a user name or password as %40")
    if parsed.drivername == "sqlite" and parsed.host:
        raise StorageError(
            f"sqlite://{parsed.host}: names a host; write sqlite:///{parsed.host}/{parsed.database or ''}"
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError("workers cannot share a database in memory; write sqlite:///FILE")
    return parsed


def _with_socket_folder(parsed: URL) -> URL:
    # libpq takes a socket's folder in the place of the host too; SQLAlchemy does not decode it there.
    moved = {"host": unquote(parsed.host or ""), **({"port": str(parsed.port)} if parsed.port else {})}
    user = parsed.username, parsed.password
    return URL.create(parsed.drivername, *user, database=parsed.database, query={**parsed.query, **moved})


def absolute(url: str) -> URL:
    """The URL independent of the working directory."""
    parsed = parse(url)
    # Resolve the path as the operating system does: SQLAlchemy removes `..` textually, which leads to another file
    # where the folder before it is a symbolic link.
    return parsed.set(database=str(file.resolve())) if (file := file_of(url)) else parsed


def connect_args(url: str, seconds: int | None = None) -> dict[str, Any]:
    """Arguments for the driver beside the URL. Numbers from the URL are among them: the driver would read text.

    Statements are not prepared on a server unless the URL has `prepare_threshold`: PgBouncer's transaction mode gives
    each transaction another connection, which lacks the prepared statements.

    Args:
        seconds: timeout of another writer of SQLite, or of connecting to a server; None for the defaults.

    Raises:
        StorageError: the URL has an option that is invalid, or that fmnist-search sets itself.
    """
    parsed = parse(url)
    if parsed.drivername == "sqlite":
        return {"timeout": BUSY_TIMEOUT if seconds is None else seconds}
    for name in OURS:
        if name in parsed.query:
            raise StorageError(f"{displayed(url)}: remove the option {name}, which fmnist-search sets")
    chosen = _number(url, "connect_timeout")
    return {
        "connect_timeout": (CONNECT_TIMEOUT if chosen is None else chosen) if seconds is None else seconds,
        "prepare_threshold": _number(url, "prepare_threshold"),
        # notice a vanished server within about a minute, not after TCP's two hours
        **{name: value for name, value in KEEPALIVE.items() if name not in parsed.query},
        "client_encoding": "utf8",  # else a server with SQL_ASCII would return text as bytes
    }


def _number(url: str, name: str) -> int | None:
    value = parse(url).query.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.isdecimal():
        raise StorageError(f"{displayed(url)}: the option {name} must be a whole number")
    return int(value)


def file_of(url: str) -> Path | None:
    """The file of an SQLite database; None for a database on a server."""
    parsed = parse(url)
    return Path(str(parsed.database)) if parsed.drivername == "sqlite" else None


def displayed(url: str | URL) -> str:
    """The URL for messages and for commands to paste: with its options, without passwords."""
    parsed = parse(url) if isinstance(url, str) else url
    return URL.create(
        parsed.drivername.removesuffix("+psycopg"),
        parsed.username,
        None,
        parsed.host,
        parsed.port,
        parsed.database,
        {name: value for name, value in parsed.query.items() if name not in SECRETS},
    ).render_as_string()


@dataclass(frozen=True)
class Location:
    """Where a command looks for studies: its --storage and --output, None for their defaults."""

    storage: str | None = field(default=None, repr=False)  # it may contain a password
    output: Path | None = None


def options_for(url: str, output: Path, usual: Location | None, *, anywhere: bool = False) -> str:
    """The --storage and --output with which a printed command finds a study when it is pasted.

    An option that the environment or a file gives is omitted. So are passwords, which libpq also reads from PGPASSWORD
    and ~/.pgpass.

    Args:
        output: folder with the studies' folders.
        usual: where commands without these options look; None if unknown, as in a program that imports us.
        anywhere: write absolute paths, for commands that may be pasted in another folder.
    """
    wanted = absolute(url)
    storage, chosen = (usual.storage, usual.output) if usual else (None, None)
    if storage:
        # A relative path in the settings leads elsewhere in another folder, and differs from the absolute one.
        beside, found = False, wanted == (parse(storage) if anywhere else absolute(storage))
    else:
        beside = found = usual is not None and wanted == absolute(default_url(output))
    options = [] if found else ["--storage", displayed(wanted if anywhere else url)]
    expected = chosen or (OUTPUT if beside else output)
    if (anywhere and (beside or chosen)) or expected.resolve() != output.resolve():
        options += ["--output", _typed(output.resolve() if anywhere else output)]
    return "".join(f" {shlex.quote(option)}" for option in options)


def password_note(url: str, options: str) -> str | None:
    """What a user has to know about commands with these options; None if nothing."""
    if " --storage " not in options or not secrets_of(url):
        return None
    return "Printed commands leave out the database's password: set PGPASSWORD, or write it to ~/.pgpass."


def command(*words: str | int, options: str = "") -> str:
    """A command of fmnist-search for a shell; options: already quoted."""
    return shlex.join(["fmnist-search", *map(str, words)]) + options


def secrets_of(url: str) -> list[str]:
    """The passwords in a URL, plain and percent-encoded."""
    parsed = parse(url)
    secrets = [parsed.password, *(parsed.query.get(name) for name in SECRETS)]
    return [form for secret in filter(None, secrets) for form in (str(secret), quote(str(secret), safe=""))]


def without_password(text: str, url: str) -> str:
    """A driver's message with the URL's passwords masked."""
    for secret in secrets_of(url):
        text = text.replace(secret, "***")
    return text


def warnings_for(url: str, workers: int, *, cluster: bool = False) -> list[str]:
    """Warnings about a database that is unsafe or too slow for these workers.

    Args:
        cluster: whether the workers may be on several machines.
    """
    file = file_of(url)
    if file is None:
        return []
    warnings = []
    if cluster:
        warnings.append("Warning: SQLite serves only workers on this machine; use PostgreSQL for several machines.")
    if workers > SQLITE_WORKERS:
        warnings.append(f"Warning: more than {SQLITE_WORKERS} workers slow each other down on SQLite; use PostgreSQL.")
    kind = _file_system(file)
    if kind.startswith(NETWORKED):
        warnings.append(f"Warning: SQLite is not safe on a network file system ({kind}); use PostgreSQL.")
    return warnings


def _file_system(path: Path) -> str:
    # The file system's name in /proc/mounts, "" if unknown.
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return ""
    mounted = [line.split() for line in mounts.read_bytes().splitlines()]  # a space in a path is written \040
    kinds = {Path(os.fsdecode(fields[1].decode("unicode_escape").encode("latin-1"))): fields[2] for fields in mounted}
    resolved = path.resolve()
    return next((kinds[folder].decode() for folder in (resolved, *resolved.parents) if folder in kinds), "")
