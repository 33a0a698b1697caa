"""Find and download the files of the data set; nothing here reads their content."""

import os
import socket
from pathlib import Path

from platformdirs import user_cache_path

from fmnist.errors import DataError, DataNotFound
from fmnist.files import expand

# SHA-256 of the uncompressed files, because Debian rewrites the headers of the .gz files. With the original header
# restored, Debian's files have the md5 that torchvision checks.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DECLARATION = "SHA256SUMS"
TORCHVISION = Path("FashionMNIST", "raw")  # torchvision's folder below its root
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MIRROR_TIMEOUT = 30  # seconds without data


def cache_folder() -> Path:
    """The user's folder for a downloaded data set."""
    return Path(user_cache_path("fmnist-search")) / TORCHVISION


def find(folder: Path | None = None) -> Path | None:
    """Find the folder that holds the four files, compressed or not; None if there is none.

    Searches only `folder`, or else only FMNIST_DATA, if given; otherwise the user's cache, then the folder of Debian's
    package.

    Args:
        folder: of the files, or the root of torchvision's data sets, which has them in FashionMNIST/raw.

    Raises:
        DataError: the given folder does not hold the four files.
    """
    given = folder or (Path(os.environ["FMNIST_DATA"]) if os.environ.get("FMNIST_DATA") else None)
    if given is None:
        return next((known for known in (cache_folder(), DEBIAN_FOLDER) if not _missing(known)), None)
    given = expand(given)
    found = next((place for place in (given, given / TORCHVISION) if not _missing(place)), None)
    if found is None:
        names = ", ".join(map(compressed, CHECKSUMS))
        raise DataError(f"{given}: {_missing(given)[0]} not found; name the folder that holds {names}")
    return found


def fetch() -> Path:
    """Download the data set with torchvision into the user's cache; return its folder.

    Raises:
        DataNotFound: the download failed.
    """
    from torchvision.datasets import FashionMNIST

    folder = cache_folder()
    for file in CHECKSUMS:  # torchvision skips the download if it finds uncompressed files
        (folder / file).unlink(missing_ok=True)
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MIRROR_TIMEOUT)
    try:
        FashionMNIST(str(folder.parent.parent), download=True)
    except (OSError, RuntimeError) as error:
        raise DataNotFound(
            "Fashion-MNIST is not on this machine and could not be downloaded "
            f"({str(error).strip().splitlines()[0]}). "
            "Install Debian's package (apt-get install dataset-fashion-mnist), "
            "or copy the four .gz files to this machine and name their folder with --data-dir or FMNIST_DATA."
        ) from error
    finally:
        socket.setdefaulttimeout(previous_timeout)
    return folder


def compressed(file: str) -> str:
    """The file's published name."""
    return f"{file}.gz"


def path_of(folder: Path, file: str) -> Path:
    """Path of one of the four files in a folder, compressed or not."""
    packed, plain = folder / compressed(file), folder / file
    return plain if plain.is_file() and not packed.is_file() else packed


def _missing(folder: Path) -> list[str]:
    return [compressed(file) for file in CHECKSUMS if not path_of(folder, file).is_file()]


def declared_checksums(folder: Path) -> dict[str, str]:
    """Expected SHA-256 of each uncompressed file: from the folder's SHA256SUMS, or else Fashion-MNIST's.

    Raises:
        DataError: SHA256SUMS does not list all four files.
    """
    declaration = folder / DECLARATION
    if not declaration.is_file():
        return CHECKSUMS
    rows = [line.split() for line in declaration.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    # sha256sum marks binary files with * and keeps a leading ./
    declared = {Path(row[1].lstrip("*")).name: row[0].lower() for row in rows if len(row) == 2}
    if not CHECKSUMS.keys() <= declared.keys():
        raise DataError(
            f"{declaration}: must list {', '.join(CHECKSUMS)}; unpack the files and create it with sha256sum"
        )
    return {file: declared[file] for file in CHECKSUMS}
