"""Atomic writes, and paths that begin with ~."""

import os
import socket
from pathlib import Path


def expand(path: Path | str) -> Path:
    """Replace a leading ~ with the user's home; that of an unknown user stays unchanged."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises for an unknown user


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically, creating its folder. A reader sees the previous file or the complete new one.

    An existing pipe or device, such as /dev/null, is written to directly.

    Raises:
        OSError: the disk is full or the folder is not writable; the previous file stays. It names `path` as given.
    """
    try:
        _write(path, content)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            file.write(content)
        return
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
