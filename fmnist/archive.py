"""torch.save files that end in a digest of all their bytes, read in bounded memory.

The digest is the comment of the zip archive that torch.save writes. Zip readers skip the comment, so
`torch.load(path, weights_only=True)` opens these files too.
"""

import hashlib
import io
import pickletools
import re
import struct
import warnings
import zipfile
from typing import Any

import torch

PREFIX = b"sha256:"  # starts the comment; the hexadecimal digest of all preceding bytes follows
DIGEST = 64  # length of the digest in characters
LARGEST_PICKLE = 2**20  # bytes; 1,000 epochs of history take half of it, and each byte may expand to 100 in memory

# The end of a torch.save file: the zip64 end of central directory (entries, size and offset of the directory), its
# locator (offset of that record), and the pre-zip64 end of central directory (length of the comment).
END = struct.Struct("<4s28x3Q 4s4xQ4x 4s16xH")
NAME = re.compile(r"[a-z0-9_./]+")  # no capitals, as torch ignores case, and no NUL, where zipfile truncates

# All that pickled weights need. torch's own list also allows bytearray, so a file could allocate bytearray(10**10).
GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "Long", "Double", "Half", "BFloat16", "Int", "Short", "Char")),
    *(f"torch {kind}Storage" for kind in ("Byte", "Bool")),
}


def write(payload: dict[str, Any]) -> bytes:
    """Serialize plain values and tensors to the content of a file."""
    file = io.BytesIO()
    torch.save(payload, file)
    file.seek(-2, io.SEEK_END)  # the comment's length; torch writes no comment
    file.write(struct.pack("<H", len(PREFIX) + DIGEST) + PREFIX)
    file.write(hashlib.sha256(file.getbuffer()).hexdigest().encode())
    return file.getvalue()


def digest_of(content: bytes) -> str | None:
    """The digest at the end of a file, None if it has none; `read` verifies it."""
    comment = content[-len(PREFIX) - DIGEST :]
    return comment[len(PREFIX) :].decode("latin-1") if comment.startswith(PREFIX) else None


def read(content: bytes) -> Any:
    """Read a file's content, tensors on the CPU, in at most a few times its size of memory.

    Raises:
        ValueError: a byte has changed, or torch.save did not write the file.
        Exception: zipfile, pickletools and torch share no error class for unreadable files.
    """
    digest = digest_of(content)
    if digest is not None and hashlib.sha256(memoryview(content)[:-DIGEST]).hexdigest() != digest:
        raise ValueError("the digest differs")
    _check_end(content, 0 if digest is None else len(PREFIX) + DIGEST)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read(_checked_pickle(archive, len(content)))
    for opcode, argument, _ in pickletools.genops(pickled):  # the only opcode for globals that torch accepts
        if opcode.name == "GLOBAL" and argument not in GLOBALS:
            raise ValueError(f"{argument} is not part of saved weights")
    with warnings.catch_warnings(action="ignore"):  # torch warns about files pickled in other ways
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_end(content: bytes, comment: int) -> None:
    # zipfile and torch locate the directory in different ways; this ensures that both find the same one.
    at = len(content) - comment - END.size
    if at < 0:
        raise ValueError("too short")
    signature, _, size, start, locator, located, end, length = END.unpack_from(content, at)
    found = (signature, start + size, locator, located, end, length)
    if found != (b"PK\6\6", at, b"PK\6\7", at, b"PK\5\6", comment):
        raise ValueError("the end is not that of a torch.save archive")


def _checked_pickle(archive: zipfile.ZipFile, size: int) -> zipfile.ZipInfo:
    # Compressed or overlapping entries could need far more memory than the file's `size` bytes.
    entries = archive.infolist()
    folder = entries[0].orig_filename.partition("/")[0] + "/"  # torch's rule; here it is "archive/"
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        named = entry.orig_filename.startswith(folder) and NAME.fullmatch(entry.orig_filename.removeprefix(folder))
        if not stored or not named or entry.filename != entry.orig_filename:
            raise ValueError(f"{entry.orig_filename!r} was not written by torch.save")
    if len({entry.filename for entry in entries}) < len(entries) or sum(entry.file_size for entry in entries) > size:
        raise ValueError("entries overlap")
    pickled = archive.getinfo(folder + "data.pkl")
    if pickled.file_size > LARGEST_PICKLE:
        raise ValueError("the pickle is too large")
    return pickled
