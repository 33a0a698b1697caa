"""Output files, and how to distinguish them from files of other programs."""

import os
from errno import EISDIR
from pathlib import Path

from fmnist.errors import UsageError
from search.choices import FINALISTS

REPORT, NUMBERS = "report.html", "report.json"  # in the study's folder
BEST = "best.pt"  # in the study's folder: one training run of the winner
ENSEMBLE = "ensemble.pt"  # in the study's folder: all training runs of the winner and of finalists tied with it

DATABASE, UPLOADS = "studies.db", "uploads"  # in the output folder, beside the folders of studies
LONGEST_NAME = 255  # bytes of a file name on all common file systems

# Byte strings near the beginning or end of each file, in this version and earlier ones.
CHECKPOINT_MARKS = (b"fmnist-search checkpoint ",)
ENSEMBLE_MARKS = (b"fmnist-search ensemble ",)
ONNX_MARKS = (b'{"fmnist_search": "',)
INPUT_MARKS = (b"Software\0fmnist-search predict",)
REPORT_MARKS = (b" - fmnist-search</title>", b'{"summary": {"study": "', b'{"answers": [')
OF_A_STUDY = {
    REPORT: REPORT_MARKS,
    NUMBERS: REPORT_MARKS,
    BEST: CHECKPOINT_MARKS,
    ENSEMBLE: ENSEMBLE_MARKS,
}  # files in its folder
SEARCHED = 2**16  # bytes, from the beginning and from the end


class NotOurs(UsageError):
    """A file not written by fmnist-search would be overwritten."""


def check_name(name: str) -> None:
    """Check the name of a new study, which is also that of its folder.

    Raises:
        UsageError: the name is invalid for the study or for its finalists.
    """
    if unprintable := [character for character in name if not character.isprintable()]:
        raise UsageError(f"{name!r} cannot name a study; remove the unprintable U+{ord(unprintable[0]):04X}")
    if not name.strip() or name.startswith(".") or {"/", "\\"} & set(name):
        raise UsageError(f"{name!r} cannot name a folder; use a name without slashes and leading dot")
    if name.endswith(FINALISTS):
        raise UsageError(f"{name!r} is reserved for the finalists of another study; choose another name")
    if name == UPLOADS or name.startswith(DATABASE):
        raise UsageError(f"{name!r} is reserved for a file of fmnist-search; choose another name")
    if (length := len(f"{name}{FINALISTS}".encode())) > LONGEST_NAME:
        most = LONGEST_NAME - len(FINALISTS)
        raise UsageError(f"a name of {length - len(FINALISTS)} bytes is too long for a folder; use at most {most}")


def check_replaceable(path: Path, marks: tuple[bytes, ...], advice: str, *, force: bool = False) -> None:
    """Refuse to overwrite a file of another program.

    Args:
        marks: byte strings of which our files contain one.
        advice: what to do, for the error message.
        force: overwrite it anyway.

    Raises:
        NotOurs: the file has none of the marks.
        OSError: the path is a folder, or the file cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    # An empty file has nothing to lose; pipes and devices such as /dev/null are not overwritten.
    if not force and path.is_file() and path.stat().st_size and not is_ours(path, marks):
        raise NotOurs(f"{path}: fmnist-search did not write this file; {advice}")


def is_ours(path: Path, marks: tuple[bytes, ...]) -> bool:
    """Whether a file contains one of the marks near its beginning or end."""
    with path.open("rb") as file:
        ends = [file.read(SEARCHED)]
        file.seek(max(0, path.stat().st_size - SEARCHED))
        ends.append(file.read(SEARCHED))
    return any(mark in end for mark in marks for end in ends)


def check_outputs(folder: Path) -> None:
    """Refuse a study's folder in which a search would overwrite files of another program.

    Raises:
        NotOurs: there is such a file.
        OSError: an output path is a folder, or a file cannot be read.
    """
    advice = "move it away, or name another folder with --output"
    for name, marks in OF_A_STUDY.items():
        check_replaceable(folder / name, marks, advice)
