"""Interpreter, torch, data set, folders and report of this machine."""

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from fmnist.errors import ExpectedError
from search.artifacts import ArtifactError, open_artifacts
from search.doctor.check import Check

OLDEST, NEWEST = (3, 11), (3, 13)  # Python that the tests were run on; a newer one is warned of
NEEDED, COMFORTABLE = 100_000_000, 1_000_000_000  # bytes of free disk


def check_python(running: tuple[int, int] = sys.version_info[:2]) -> Check:
    """The interpreter's version."""
    oldest, newest, this = (".".join(map(str, each)) for each in (OLDEST, NEWEST, running))
    if running < OLDEST:
        return Check.failed("Python", f"{this}; install Python {oldest} or newer, and fmnist-search into it")
    if running > NEWEST:
        return Check.warning("Python", f"{this} was never tested; if something fails, use Python {oldest} to {newest}")
    return Check.ok("Python", f"{platform.python_version()}, {sys.executable}")


def check_torch(workers: int | None) -> Iterator[Check]:
    """Whether torch can be imported, what it trains on, and whether it has as many threads as cores at most."""
    try:
        import torch as installed
    except (ImportError, OSError) as error:
        yield Check.failed(
            "torch", f"cannot be imported ({error}); install it again: pip install --force-reinstall torch"
        )
        return
    from search.engines.local import cores

    accelerators = {"cuda": installed.cuda.is_available(), "mps": installed.backends.mps.is_available()}
    device = next((name for name, there in accelerators.items() if there), "cpu")
    yield Check.ok("torch", f"{installed.__version__}, trains on {device}")
    threads, here = installed.get_num_threads(), cores()
    if workers and workers > here:
        yield Check.warning("threads", f"{workers} workers on {here} cores; give --workers {here}")
    elif threads > here:
        yield Check.warning("threads", f"torch takes {threads} on {here} cores; unset OMP_NUM_THREADS")
    else:
        yield Check.ok("threads", f"{workers or here} workers on {here} cores")


def check_data_set(folder: Path | None) -> Check:
    """Whether the data set is here and whole."""
    try:
        from fmnist import data, source

        found = source.find(folder)
        if found is None:
            return Check.warning("data set", "is not here yet; `run` downloads it, as does `fmnist-search data`")
        loaded = data.load(found)
    except (ExpectedError, ImportError, OSError) as error:
        return Check.failed("data set", error)
    images = f"{len(loaded.train):,} + {len(loaded.test):,} images"
    return Check.ok("data set", f"{loaded.name}: {images}, verified, in {loaded.folder}")


def check_artifacts(place: str) -> Check:
    """Whether checkpoints can be written where they go."""
    name = f"doctor-{os.getpid()}"
    folder = None if "://" in place else Path(place)
    try:
        if folder is not None and not folder.is_dir():
            above = nearest(folder)
            if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
                return Check.failed("artifacts", f"{folder} cannot be made; make {above} a folder that can be written")
            return Check.ok("artifacts", f"{folder}, which is made when it is needed")
        store = open_artifacts(place)
        store.write(name, b"written by fmnist-search doctor")
        store.remove(name)
    except (ArtifactError, OSError) as error:
        return Check.failed("artifacts", error)
    return Check.ok("artifacts", f"{store.location} can be written")


def check_disk(folders: Iterable[Path]) -> Iterator[Check]:
    """The room on each disk that has one of the folders, or will have it."""
    disks = {folder.stat().st_dev: folder for folder in map(nearest, folders)}
    for folder in disks.values():
        free = shutil.disk_usage(folder).free
        found = f"{free / 1e9:.1f} GB in {folder.resolve()}"
        mend = "make room, or name another --output"
        if free < NEEDED:
            yield Check.failed("free disk", f"{found}; {mend}")
        elif free < COMFORTABLE:
            yield Check.warning("free disk", f"{found}; {mend}")
        else:
            yield Check.ok("free disk", found)


def check_report() -> Check:
    """Whether a report can be written. Its figures need no browser: plotly's JavaScript goes into the page."""
    try:
        from plotly.offline import get_plotlyjs

        import search.report.page  # noqa: F401

        get_plotlyjs()
    except (ImportError, OSError) as error:
        return Check.failed("report", f"cannot be written ({error}); install plotly and jinja2 again with pip")
    return Check.ok("report", f"plotly {version('plotly')}, which draws without browser and network")


def nearest(path: Path) -> Path:
    """The path if it is there, else what is there of the folders above it."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if os.access(each, os.F_OK))
