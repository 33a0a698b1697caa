"""Files of torch.save that end in a digest of all their bytes, read within bounds.

The digest is the comment of the zip archive that torch.save writes. Readers of zip archives skip the comment, so
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

PREFIX = b"sha256:"  # the comment: this, then the digest of all bytes before it in hexadecimal
DIGEST = 64  # its characters
LARGEST_PICKLE = 2**20  # bytes; 1,000 epochs of history take half of it, and a byte of it may become 100 in memory

# What torch.save ends with: zip64's end of the directory (entries, size and offset of the directory), its locator
# (offset of the former), and the end of the directory as it was before zip64 (length of the comment).
END = struct.Struct("<4s28x3Q 4s4xQ4x 4s16xH")
NAME = re.compile(r"[a-z0-9_./]+")  # torch ignores case and zipfile cuts at a NUL, so there is neither

# What weights need of torch's pickle. It would also call bytearray(10**10) for a file that asks for it.
GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "Long", "Double", "Half", "BFloat16", "Int", "Short", "Char")),
    *(f"torch {kind}Storage" for kind in ("Byte", "Bool")),
}


def write(payload: dict[str, Any]) -> bytes:
    """The content of a file with plain values and tensors."""
    file = io.BytesIO()
    torch.save(payload, file)
    file.seek(-2, io.SEEK_END)  # the length of the comment, which torch leaves empty
    file.write(struct.pack("<H", len(PREFIX) + DIGEST) + PREFIX)
    file.write(hashlib.sha256(file.getbuffer()).hexdigest().encode())
    return file.getvalue()


def digest_of(content: bytes) -> str | None:
    """The digest at the end of a file, None if it has none. Whether it is right, `read` checks."""
    comment = content[-len(PREFIX) - DIGEST :]
    return comment[len(PREFIX) :].decode("latin-1") if comment.startswith(PREFIX) else None


def read(content: bytes) -> Any:
    """What is in a file, its tensors on the CPU. It takes no more memory than a few times the file's size.

    Raises:
        ValueError: a byte differs from what was written, or torch.save did not write it.
        Exception: zipfile, pickletools and torch have no error in common for what they cannot read.
    """
    digest = digest_of(content)
    if digest is not None and hashlib.sha256(memoryview(content)[:-DIGEST]).hexdigest() != digest:
        raise ValueError("the digest differs")
    _check_end(content, 0 if digest is None else len(PREFIX) + DIGEST)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read(_checked_pickle(archive, len(content)))
    for opcode, argument, _ in pickletools.genops(pickled):  # of the opcodes for globals, torch reads this one
        if opcode.name == "GLOBAL" and argument not in GLOBALS:
            raise ValueError(f"{argument} is no part of weights")
    with warnings.catch_warnings(action="ignore"):  # torch muses on how other files were pickled
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_end(content: bytes, comment: int) -> None:
    """Raise ValueError unless zipfile and torch, which look for the directory in different ways, find the same one."""
    at = len(content) - comment - END.size
    if at < 0:
        raise ValueError("too short")
    signature, _, size, start, locator, located, end, length = END.unpack_from(content, at)
    found = (signature, start + size, locator, located, end, length)
    if found != (b"PK\6\6", at, b"PK\6\7", at, b"PK\5\6", comment):
        raise ValueError("not the end of an archive of torch.save")


def _checked_pickle(archive: zipfile.ZipFile, size: int) -> zipfile.ZipInfo:
    """The entry that torch unpickles, of an archive in a file of `size` bytes.

    Raises:
        ValueError: entries are compressed, overlap or are larger than the file.
    """
    entries = archive.infolist()
    folder = entries[0].orig_filename.partition("/")[0] + "/"  # as torch finds it; ours is "archive"
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        named = entry.orig_filename.startswith(folder) and NAME.fullmatch(entry.orig_filename.removeprefix(folder))
        if not stored or not named or entry.filename != entry.orig_filename:
            raise ValueError(f"{entry.orig_filename!r} is no entry of torch.save")
    if len({entry.filename for entry in entries}) < len(entries) or sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries overlap")
    pickled = archive.getinfo(folder + "data.pkl")
    if pickled.file_size > LARGEST_PICKLE:
        raise ValueError("its pickle is too large")
    return pickled
