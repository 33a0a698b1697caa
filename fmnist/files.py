"""Files that are whole or not there."""

import os
import socket
from pathlib import Path


def expand(path: Path | str) -> Path:
    """A path with its leading ~ replaced by the user's home; that of an unknown user stays what it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises for an unknown user


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and its folder where there is none. A reader sees the former file or the whole new one.

    What is there and no regular file, as a pipe or /dev/null, is written to and stays what it is.

    Raises:
        OSError: the disk is full or the folder cannot be written; the former file stays. It names the path as given.
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
