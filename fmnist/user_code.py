"""Run the user's code: errors show only its own frames, and its output goes to standard error."""

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
    """Run the user's code in this context; its output goes to standard error, as standard output may be JSON.

    Args:
        where: an architecture, a file or a module; nothing is changed for a built-in architecture.
        folder: of the code, for advice on failed imports.

    Raises:
        NetworkError: the code raised an exception or called exit(); shows the code's own frames only.
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
        raise NetworkError(
            f"{_place(error, where)}: {_summary(error)}; {_import_advice(error, where, folder)}"
        ) from error
    except Exception as error:  # whatever the user's code raises
        frames = "".join(traceback.StackSummary.from_list(_user_frames(error)).format())
        memory = isinstance(error, MemoryError) or "memory" in str(error)
        fix = "make the network smaller, or search smaller values" if memory else "correct it"
        raise NetworkError(f"{_place(error, where)}: {_summary(error)}; {fix}\n{frames}".rstrip()) from error


def each(architecture: str, values: Iterator[Value]) -> Iterator[Value]:
    """Iterate over `values` with `running` around the iterator's code, but not around the caller's loop body."""
    while True:
        with running(architecture):
            try:
                value = next(values)
            except StopIteration:
                return
        yield value


def _import_advice(error: ImportError, where: str, folder: Path | None) -> str:
    name = (error.name or "").partition(".")[0]
    if folder and name and (folder / f"{name}.py").exists():
        if name == where:
            return f"name the file, as {name}.py:CLASS"
        return f"{name}.py is in the same folder: make them a package on PYTHONPATH and name PACKAGE.MODULE:CLASS"
    if not name and not isinstance(error, ModuleNotFoundError):  # a relative import, as from .layers
        return "a single file has no relative imports: make a package on PYTHONPATH and name PACKAGE.MODULE:CLASS"
    return "install it, or correct the name"


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    # Without frames of this project, Python's standard library and installed packages.
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
    frames = _user_frames(error)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else where


def _summary(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def line_of(function: Any, otherwise: str) -> str:
    """File and line where a user's function begins; `otherwise` for an inherited one."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or "-packages" in code.co_filename:  # inherited, from torch
        return otherwise
    return f"{Path(code.co_filename).name}, line {code.co_firstlineno}"
