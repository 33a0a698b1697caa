"""Where the checkpoints of a study are: in a folder, or in a bucket that speaks S3.

A checkpoint's name holds trial and epoch, so that its content never changes; the trial's
user attribute "checkpoint" names the one that counts. A process that lost its ticket may
therefore still write a file, but nobody is misled by it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fmnist.errors import ExpectedError
from fmnist.files import expand, write_whole

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 20  # seconds that a bucket has to answer each of the five tries of a call
TRANSIENT_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException")  # that come with status 4xx
_CHECKPOINT = re.compile(r"\.?trial-(\d+)-epoch-.*")


class ArtifactError(ExpectedError):
    """The artifact store cannot be used; the message says what to do.

    transient: whether it may work again by itself, as after a server's restart.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Artifacts(Protocol):
    """A study's files by name. Each write is whole or did not happen."""

    location: str

    def write(self, name: str, content: bytes) -> None: ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if it is not there."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def names(self) -> list[str]: ...

    def locate(self, name: str) -> str | None:
        """The file's path or URL, for people to read; None if it is known to be gone."""


def checkpoint_name(number: int, epoch: float) -> str:
    """The name of a trial's checkpoint after that many epochs."""
    return f"trial-{number:05d}-epoch-{epoch:g}.pt"


def trial_of(name: str) -> int | None:
    """The number of the trial whose checkpoint a file is, or was to become; None for another file."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def _checked(name: str) -> str:
    """A file's name, which comes from the database: somebody may have altered it to lead out of the store.

    Raises:
        ArtifactError: it would.
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ArtifactError(f"{name!r} names no artifact: it would lead out of their folder")
    return name


def located(place: str | None) -> str | None:
    """A place as it means the same in any working directory."""
    if place is None:
        return None
    scheme, separator, rest = place.partition("://")
    return f"{scheme}://{rest.rstrip('/')}" if separator else str(expand(place).resolve())


def open_artifacts(location: str) -> Artifacts:
    """The store at a folder's path or an s3:// URL.

    Raises:
        ArtifactError: it cannot be.
    """
    if location.startswith("s3://"):
        return Bucket(location)
    if "://" in location:
        raise ArtifactError(f"{location}: no such artifact store; use a folder or s3://BUCKET/PREFIX")
    return Folder(Path(location))


class Folder:
    """A folder, which all machines of the search must see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)

    def write(self, name: str, content: bytes) -> None:
        path = self.path / _checked(name)
        if path.is_dir():
            path.rmdir()  # nobody's if it is empty; else this says that it is in the way
        write_whole(path, content)

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
    """A folder of an S3 bucket; credentials and endpoint are those that boto3 finds."""

    def __init__(self, url: str) -> None:
        try:
            import boto3  # noqa: F401
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise ArtifactError(
                "s3:// needs the extra `s3`; in the checkout of fmnist-search: pip install -e '.[s3]'"
            ) from error
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")  # a prefix may hold ? and #
        if not self.bucket:
            raise ArtifactError(f"{url}: names no bucket; write s3://BUCKET/PREFIX")
        self.folder = "".join(f"{part}/" for part in prefix.split("/") if part)
        self.location = f"s3://{self.bucket}/{self.folder}".rstrip("/")
        self.failures = (BotoCoreError, ClientError)

    @cached_property
    def client(self) -> Any:
        """boto3's; made when it is needed, as that takes a while."""
        import boto3
        from botocore.config import Config

        try:
            # All tries of a call take less than a lease's grace: a bucket out of reach is no sign of a dead worker.
            return boto3.client("s3", config=Config(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT))
        except (*self.failures, ValueError) as error:  # the latter for a malformed endpoint
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
        return f"{self.location}/{name}"  # whether it is there would cost a request

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
            f"{self.location}: {reason}; check bucket, endpoint and credentials, as boto3 finds them",
            transient=self._is_transient(error),
        )

    def _is_transient(self, error: Exception) -> bool:
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

        if not isinstance(error, ClientError):
            return isinstance(error, ConnectionError | HTTPClientError)  # no answer, or half of one
        answer: dict[str, Any] = error.response
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status == 429 or answer.get("Error", {}).get("Code") in TRANSIENT_CODES
