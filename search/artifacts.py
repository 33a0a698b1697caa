"""Checkpoint storage of a study: a folder or an S3 bucket.

A checkpoint's name contains trial and epoch, so that its content never changes, and the trial's user attribute
"checkpoint" names the valid one. A process that lost its ticket may therefore still write a file without harm.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fmnist.errors import ExpectedError
from fmnist.files import expand, write_atomically

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 20  # seconds, for each of boto3's five attempts per call
TRANSIENT_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException")  # with HTTP status 4xx
_CHECKPOINT = re.compile(r"\.?trial-(\d+)-epoch-.*")


class ArtifactError(ExpectedError):
    """The artifact store cannot be used; transient: whether retrying may help."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Artifacts(Protocol):
    """A study's files by name. Writes are atomic."""

    location: str

    def write(self, name: str, content: bytes) -> None: ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if it does not exist."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def names(self) -> list[str]: ...

    def locate(self, name: str) -> str | None:
        """The file's path or URL for display; None if it is known to be missing."""


def checkpoint_name(number: int, epoch: float) -> str:
    """The name of a trial's checkpoint after that many epochs."""
    return f"trial-{number:05d}-epoch-{epoch:g}.pt"


def trial_of(name: str) -> int | None:
    """The trial number in the name of a checkpoint or its temporary file; None for other files."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def _checked(name: str) -> str:
    # Names come from the database, where somebody may have changed one into a path out of the store.
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ArtifactError(f"{name!r} is not an artifact's name: it leads out of the folder")
    return name


def located(place: str | None) -> str | None:
    """A folder or URL made independent of the working directory."""
    if place is None:
        return None
    scheme, separator, rest = place.partition("://")
    return f"{scheme}://{rest.rstrip('/')}" if separator else str(expand(place).resolve())


def open_artifacts(location: str) -> Artifacts:
    """Open the store at a folder's path or an s3:// URL.

    Raises:
        ArtifactError: the URL is invalid, or boto3 is not installed.
    """
    if location.startswith("s3://"):
        return Bucket(location)
    if "://" in location:
        raise ArtifactError(f"{location}: unsupported artifact store; use a folder or s3://BUCKET/PREFIX")
    return Folder(Path(location))


class Folder:
    """A folder, shared by all machines of the search."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)

    def write(self, name: str, content: bytes) -> None:
        path = self.path / _checked(name)
        if path.is_dir():
            path.rmdir()  # nothing is lost if it is empty; else this raises OSError
        write_atomically(path, content)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / _checked(name)).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return None

    def remove(self, name: str) -> None:
        path = self.path / _checked(name)
        if not path.is_dir():
            path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.path.iterdir() if file.is_file()) if self.path.is_dir() else []

    def locate(self, name: str) -> str | None:
        return str(self.path / name) if (self.path / name).is_file() else None


class Bucket:
    """A prefix in an S3 bucket; boto3 finds credentials and endpoint."""

    def __init__(self, url: str) -> None:
        try:
            import boto3  # noqa: F401
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise ArtifactError(
                "s3:// needs the extra `s3`; in the checkout of fmnist-search: pip install -e '.[s3]'"
            ) from error
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")  # not urlsplit: a prefix may contain ? and #
        if not self.bucket:
            raise ArtifactError(f"{url}: the bucket is missing; write s3://BUCKET/PREFIX")
        self.folder = "".join(f"{part}/" for part in prefix.split("/") if part)
        self.location = f"s3://{self.bucket}/{self.folder}".rstrip("/")
        self.failures = (BotoCoreError, ClientError)

    @cached_property
    def client(self) -> Any:
        """boto3's client, created on first use because it is slow."""
        import boto3
        from botocore.config import Config

        try:
            # All attempts of a call take less than a lease's grace, so that an unreachable bucket costs no lease.
            return boto3.client("s3", config=Config(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT))
        except (*self.failures, ValueError) as error:  # ValueError: malformed endpoint
            raise self._error(error) from error

    def write(self, name: str, content: bytes) -> None:
        with self._reported():
            self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def read(self, name: str) -> bytes | None:
        with self._reported():
            try:
                return bytes(self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read())
            except self.client.exceptions.NoSuchKey:
                return None

    def remove(self, name: str) -> None:
        with self._reported():
            self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2")
        with self._reported():
            found = pages.paginate(Bucket=self.bucket, Prefix=self.folder, Delimiter="/").search("Contents[].Key")
            return sorted(key.removeprefix(self.folder) for key in found if key is not None)

    def locate(self, name: str) -> str | None:
        return f"{self.location}/{name}"  # checking that it exists would cost a request

    def _key(self, name: str) -> str:
        return self.folder + _checked(name)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except self.failures as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> ArtifactError:
        reason = " ".join(str(error).split())
        return ArtifactError(
            f"{self.location}: {reason}; check bucket, endpoint and credentials in boto3's configuration",
            transient=self._is_transient(error),
        )

    def _is_transient(self, error: Exception) -> bool:
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

        if not isinstance(error, ClientError):
            return isinstance(error, ConnectionError | HTTPClientError)  # no response, or an incomplete one
        answer: dict[str, Any] = error.response
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status == 429 or answer.get("Error", {}).get("Code") in TRANSIENT_CODES
