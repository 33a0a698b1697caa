"""The files of the data set: where they are looked for, and how they are fetched.

Nothing here reads what is in them.
"""

import os
import socket
from pathlib import Path

from platformdirs import user_cache_path

from fmnist.errors import DataAbsent, DataError

# SHA-256 of the uncompressed files. Not of the .gz: Debian rewrites their headers. With the
# header of the original put back, Debian's files have the md5 that torchvision checks.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DECLARATION = "SHA256SUMS"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MIRROR_TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """Where a fetched data set is kept for this user."""
    return Path(user_cache_path("fmnist-search")) / "FashionMNIST" / "raw"


def find(folder: Path | None = None) -> Path | None:
    """Find the folder that holds the four files; None where there is none.

    Looks in `folder`, else in the environment's FMNIST_DATA, and only there if one is
    given; otherwise in the user's cache, then where Debian's package puts them.

    Raises:
        DataError: a folder was given and does not hold the four files.
    """
    given = folder or (Path(os.environ["FMNIST_DATA"]) if os.environ.get("FMNIST_DATA") else None)
    if given is None:
        return next((known for known in (cache_folder(), DEBIAN_FOLDER) if not _missing(known)), None)
    if missing := _missing(given):
        raise DataError(
            f"{given}: no {missing[0]} in it; name the folder that holds {', '.join(map(compressed, CHECKSUMS))}"
        )
    return given


def fetch() -> Path:
    """Download the data set with torchvision into the user's cache; returns its folder.

    Raises:
        DataAbsent: no mirror answered.
    """
    from torchvision.datasets import FashionMNIST

    folder = cache_folder()
    for file in CHECKSUMS:  # torchvision fetches nothing where it finds unpacked files
        (folder / file).unlink(missing_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MIRROR_TIMEOUT)
    try:
        FashionMNIST(str(folder.parent.parent), download=True)
    except (OSError, RuntimeError) as error:
        raise DataAbsent(
            "Fashion-MNIST is not on this machine and could not be downloaded "
            f"({str(error).strip().splitlines()[0]}). "
            "Install Debian's package (apt-get install dataset-fashion-mnist), "
            "or copy the four .gz files here and name their folder with --data-dir or FMNIST_DATA."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return folder


def compressed(file: str) -> str:
    """The name under which a file is published."""
    return f"{file}.gz"


def _missing(folder: Path) -> list[str]:
    return [compressed(file) for file in CHECKSUMS if not (folder / compressed(file)).is_file()]


def declared_checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 that the content of each of the folder's files must have."""
    declaration = folder / DECLARATION
    if not declaration.is_file():
        return CHECKSUMS
    rows = [line.split() for line in declaration.read_text(errors="replace").splitlines()]
    declared = {row[1].lstrip("*"): row[0] for row in rows if len(row) == 2}
    if not CHECKSUMS.keys() <= declared.keys():
        raise DataError(
            f"{declaration}: must name {', '.join(CHECKSUMS)}; unpack the files and write it with sha256sum"
        )
    return {file: declared[file] for file in CHECKSUMS}
