"""Files that commands write for the user, and how they are told from files of other programs."""

import os
from errno import EISDIR
from pathlib import Path

from fmnist.errors import UsageError
from search.choices import FINALISTS

REPORT, NUMBERS = "report.html", "report.json"  # in the study's folder
BEST = "best.pt"  # there too: a training of the winner
ENSEMBLE = "ensemble.pt"  # likewise: all trainings of the winner and of those that tie with it

DATABASE, UPLOADS = "studies.db", "uploads"  # in the output folder, beside the folders of studies
LONGEST_NAME = 255  # bytes of a file's name on all common file systems

# What is near the beginning or the end of each file, in this version and those before.
CHECKPOINT_MARKS = (b"fmnist-search checkpoint ",)
ENSEMBLE_MARKS = (b"fmnist-search ensemble ",)
ONNX_MARKS = (b'{"fmnist_search": "',)
REPORT_MARKS = (b" - fmnist-search</title>", b'{"summary": {"study": "', b'{"answers": [')
OF_A_STUDY = {
    REPORT: REPORT_MARKS,
    NUMBERS: REPORT_MARKS,
    BEST: CHECKPOINT_MARKS,
    ENSEMBLE: ENSEMBLE_MARKS,
}  # files in its folder
SEARCHED = 2**16  # bytes, from the beginning and from the end


class NotOurs(UsageError):
    """A file that fmnist-search did not write would be overwritten; the message says what to do."""


def check_name(name: str) -> None:
    """Check that a new study may have a name, which is also that of its folder.

    Raises:
        UsageError: it may not, or its finalists could not have theirs.
    """
    if unprintable := [character for character in name if not character.isprintable()]:
        raise UsageError(f"{name!r} cannot name a study: leave out U+{ord(unprintable[0]):04X}, which cannot be seen")
    if not name.strip() or name.startswith(".") or {"/", "\\"} & set(name):
        raise UsageError(f"{name!r} cannot name a folder; leave out slashes and a leading dot")
    if name.endswith(FINALISTS):
        raise UsageError(f"{name!r} would be the finalists of another study; choose another name")
    if name == UPLOADS or name.startswith(DATABASE):
        raise UsageError(f"{name!r} is a name that fmnist-search has for another file there; choose another name")
    if (length := len(f"{name}{FINALISTS}".encode())) > LONGEST_NAME:
        most = LONGEST_NAME - len(FINALISTS)
        raise UsageError(f"a name of {length - len(FINALISTS)} bytes is too long for a folder; {most} are the most")


def check_replaceable(path: Path, marks: tuple[bytes, ...], advice: str, *, force: bool = False) -> None:
    """Refuse to write where a file of somebody else is; force: write there all the same.

    An empty file holds nothing to lose. A pipe or a device, as /dev/null, is not overwritten but written to.

    Raises:
        NotOurs: the file has none of the marks.
        OSError: it is a folder, or cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    if not force and path.is_file() and path.stat().st_size and not is_ours(path, marks):
        raise NotOurs(f"{path}: fmnist-search did not write this file; {advice}")


def is_ours(path: Path, marks: tuple[bytes, ...]) -> bool:
    """Whether a file has one of the marks. It is neither read whole nor unpickled."""
    with path.open("rb") as file:
        ends = [file.read(SEARCHED)]
        file.seek(max(0, path.stat().st_size - SEARCHED))
        ends.append(file.read(SEARCHED))
    return any(mark in end for mark in marks for end in ends)


def check_outputs(folder: Path) -> None:
    """Refuse a study's folder in which a search would overwrite files of somebody else.

    Raises:
        NotOurs: there is one.
        OSError: there is a folder of such a name, or a file cannot be read.
    """
    advice = "move it away, or name another folder with --output"
    for name, marks in OF_A_STUDY.items():
        check_replaceable(folder / name, marks, advice)
