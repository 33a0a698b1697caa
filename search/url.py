"""The URL of a database of studies: checked, shown without its password, and what is to be said of it."""

import shlex
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from fmnist.errors import ExpectedError

SQLITE_WORKERS = 8  # that SQLite serves without much waiting
NETWORKED = ("nfs", "cifs", "smb", "afs", "9p", "ceph", "lustre", "gpfs", "fuse.sshfs", "fuse.gluster", "fuse.s3")


class StorageError(ExpectedError):
    """The database cannot be reached or used; the message says what to do, without a password."""


def default_url(output: Path) -> str:
    """The embedded database of an output folder."""
    return f"sqlite:///{output / 'studies.db'}"


def parse(url: str) -> URL:
    """Check a storage URL; `postgresql://` is taken to mean psycopg 3.

    Raises:
        StorageError: it is malformed, in memory, or of another database.
    """
    try:
        parsed = make_url(url)
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
    if "@" in (parsed.host or "") or (parsed.host and "@" in (parsed.database or "")):
        raise StorageError("the storage URL has more than one @; write one in a user name or password as %40")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError("a database in memory cannot be shared by workers; write sqlite:///FILE")
    return parsed


def masked(url: str) -> str:
    """The URL as it may be shown: a password as ***, and no options, which may hold one too."""
    return parse(url).set(query={}).render_as_string(hide_password=True)


def options_for(url: str) -> str:
    """The options that lead a command to this database, from the folder that this one was called in."""
    parsed = parse(url)
    output = Path(str(parsed.database)).parent
    if parsed.drivername != "sqlite" or url != default_url(output):
        return f" --storage {shlex.quote(masked(url))}"
    return "" if output == Path("studies") else f" --output {shlex.quote(str(output))}"


def without_password(text: str, url: str) -> str:
    """The driver's words, in case it repeats what it was given."""
    parsed = make_url(url)
    secrets = [parsed.password, *(value for key, value in parsed.query.items() if "pass" in key)]
    for secret in filter(None, secrets):
        text = text.replace(str(secret), "***")
    return text


def warnings_for(url: str, workers: int, *, cluster: bool = False) -> list[str]:
    """What is to be said about a database that will not serve so many workers, or not safely.

    cluster: whether the workers may be on several machines.
    """
    parsed = parse(url)
    if parsed.drivername != "sqlite":
        return []
    warnings = []
    if cluster:
        warnings.append("Warning: SQLite serves workers of this machine only; use PostgreSQL for those of others.")
    if workers > SQLITE_WORKERS:
        warnings.append(f"Warning: more than {SQLITE_WORKERS} workers wait for each other on SQLite; use PostgreSQL.")
    kind = _file_system(Path(str(parsed.database)))
    if kind.startswith(NETWORKED):
        warnings.append(f"Warning: SQLite is not safe on a network file system ({kind}); use PostgreSQL.")
    return warnings


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, as /proc/mounts calls it; empty where that cannot be told."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return ""
    mounted = map(str.split, mounts.read_text().splitlines())
    kinds = {Path(fields[1].encode().decode("unicode_escape")): fields[2] for fields in mounted}
    absolute = path.resolve()
    return next((kinds[folder] for folder in (absolute, *absolute.parents) if folder in kinds), "")
