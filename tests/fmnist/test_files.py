"""Atomic writes."""

import os
from pathlib import Path

import pytest

from fmnist.files import write_atomically


def test_a_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    write_atomically(file, b"previous")
    with pytest.raises(TypeError):
        write_atomically(file, "not bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"previous"
    assert list(file.parent.iterdir()) == [file]


def test_an_error_names_the_path_that_was_given(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError) as error:
        write_atomically(file / "below" / "report.html", b"page")
    assert error.value.filename == str(file / "below" / "report.html")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"page")
    assert os.read(reader, 10) == b"page"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
