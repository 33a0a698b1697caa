"""Run code of the user's: its errors are said with its own frames, and what it prints goes to standard error."""

import contextlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from fmnist.choices import is_own
from fmnist.errors import ExpectedError, NetworkError

Value = TypeVar("Value")


@contextlib.contextmanager
def running(where: str, folder: Path | None = None) -> Iterator[None]:
    """Run code of the user's; what it prints goes to standard error, as standard output may be JSON.

    Args:
        where: an architecture, a file or a module; nothing is done for an architecture of ours.
        folder: where the code looks for what it imports.

    Raises:
        NetworkError: it raised, or asked to end the process; with its own frames and none of ours.
    """
    if folder is None and not is_own(where):
        yield
        return
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ExpectedError:
        raise
    except SyntaxError as error:
        file = Path(error.filename).name if error.filename else where
        line = f", line {error.lineno}" if error.lineno else ""
        raise NetworkError(f"{file}{line}: {error.msg}; correct it") from error
    except SystemExit as error:
        raise NetworkError(f"{_place(error, where)}: calls exit(); remove the call") from error
    except ImportError as error:
        raise NetworkError(f"{_place(error, where)}: {_said(error)}; {_of_import(error, where, folder)}") from error
    except Exception as error:  # whatever the user's code raises
        frames = "".join(traceback.StackSummary.from_list(_frames(error)).format())
        memory = isinstance(error, MemoryError) or "memory" in str(error)
        fix = "make the network smaller, or search smaller values" if memory else "correct it"
        raise NetworkError(f"{_place(error, where)}: {_said(error)}; {fix}\n{frames}".rstrip()) from error


def each(architecture: str, values: Iterator[Value]) -> Iterator[Value]:
    """The same for each value that the user's code takes part in, and not for what is done with it."""
    while True:
        with running(architecture):
            try:
                value = next(values)
            except StopIteration:
                return
        yield value


def _of_import(error: ImportError, where: str, folder: Path | None) -> str:
    name = (error.name or "").partition(".")[0]
    if folder and name and (folder / f"{name}.py").exists():
        if name == where:
            return f"name the file, as {name}.py:CLASS"
        return f"{name}.py lies beside it: make them a package on PYTHONPATH and name PACKAGE.MODULE:CLASS"
    if not name and not isinstance(error, ModuleNotFoundError):  # an import of a sibling as from .layers
        return "a single file has no siblings: make them a package on PYTHONPATH and name PACKAGE.MODULE:CLASS"
    return "install it, or correct the name"


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Those of the user's code: neither of this project, nor of Python's or an installed one's."""
    ours = [Path(__file__).parent.parent / name for name in ("fmnist", "search")]
    libraries = [Path(sys.prefix), Path(traceback.__file__).parent]
    libraries += [Path(path) for path in sys.path if "-packages" in path]
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
        and not any(Path(frame.filename).is_relative_to(folder) for folder in (*ours, *libraries))
    ]


def _place(error: BaseException, where: str) -> str:
    frames = _frames(error)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else where


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def line_of(function: Any, otherwise: str) -> str:
    """File and line at which a function of the user's begins; `otherwise` for an inherited one."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or "-packages" in code.co_filename:  # inherited, from torch
        return otherwise
    return f"{Path(code.co_filename).name}, line {code.co_firstlineno}"
