"""Where the checkpoints of a study are: in a folder, or in a bucket that speaks S3.

A checkpoint's name holds trial and epoch, so that its content never changes; the trial's
user attribute "checkpoint" names the one that counts. A process that lost its ticket may
therefore still write a file, but nobody is misled by it.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from fmnist.errors import ExpectedError
from fmnist.files import write_whole


class ArtifactError(ExpectedError):
    """The artifact store cannot be used; the message says what to do."""


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


def located(place: str | None) -> str | None:
    """A place as it means the same in any working directory."""
    return place if place is None or "://" in place else str(Path(place).resolve())


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
        write_whole(self.path / name, content)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.path.iterdir()) if self.path.is_dir() else []

    def locate(self, name: str) -> str | None:
        return str(self.path / name) if (self.path / name).is_file() else None


class Bucket:
    """A folder of an S3 bucket, through Optuna's store; credentials and endpoint are those that boto3 finds."""

    def __init__(self, url: str) -> None:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
            from optuna.artifacts import Boto3ArtifactStore
        except ImportError as error:
            raise ArtifactError("s3:// needs the extra `s3`: pip install 'fmnist-search[s3]'") from error
        parsed = urlsplit(url)
        if not parsed.netloc:
            raise ArtifactError(f"{url}: names no bucket; write s3://BUCKET/PREFIX")
        self.location = url.rstrip("/")
        self.prefix = PurePosixPath(parsed.path.strip("/"))
        self.failures = (BotoCoreError, ClientError)
        try:
            self.store: Any = Boto3ArtifactStore(parsed.netloc)
        except self.failures as error:
            raise self._error(error) from error

    def write(self, name: str, content: bytes) -> None:
        from io import BytesIO

        from boto3.exceptions import S3UploadFailedError

        try:
            self.store.write(self._key(name), BytesIO(content))
        except (*self.failures, S3UploadFailedError) as error:
            raise self._error(error) from error

    def read(self, name: str) -> bytes | None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            return bytes(self.store.open_reader(self._key(name)).read())
        except ArtifactNotFound:
            return None
        except self.failures as error:
            raise self._error(error) from error

    def remove(self, name: str) -> None:
        try:
            self.store.remove(self._key(name))
        except self.failures as error:
            raise self._error(error) from error

    def names(self) -> list[str]:
        folder = f"{self._key('')}/" if self.prefix.parts else ""
        pages = self.store.client.get_paginator("list_objects_v2").paginate(Bucket=self.store.bucket, Prefix=folder)
        try:
            return sorted(entry["Key"].removeprefix(folder) for page in pages for entry in page.get("Contents", []))
        except self.failures as error:
            raise self._error(error) from error

    def locate(self, name: str) -> str | None:
        return f"{self.location}/{name}"  # whether it is there would cost a request

    def _key(self, name: str) -> str:
        return str(self.prefix / name)

    def _error(self, error: Exception) -> ArtifactError:
        return ArtifactError(f"{self.location}: {error}; check bucket, endpoint and credentials, as boto3 finds them")
