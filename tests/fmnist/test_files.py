"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from fmnist.files import write_whole


def test_what_cannot_be_written_whole_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    write_whole(file, b"former")
    with pytest.raises(TypeError):
        write_whole(file, "no bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"former"
    assert list(file.parent.iterdir()) == [file]


def test_an_error_names_the_path_that_was_given(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError) as caught:
        write_whole(file / "below" / "report.html", b"page")
    assert caught.value.filename == str(file / "below" / "report.html")


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"page")
    assert os.read(reader, 10) == b"page"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
