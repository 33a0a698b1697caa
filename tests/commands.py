"""fmnist-search in processes of its own that share their imports, which take seconds each time.

multiprocessing's fork server makes them. It has imported all that a command needs, and done nothing with it.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

from search.cli import main

IMPORTS = [
    "tests.commands",
    "optuna.importance",
    "scipy.stats",
    "search.drain",
    "search.join",
    "search.presentation",
    "search.report",
    "search.reproduce",
    "search.retrain",
    "search.run",
    "search.worker",
    "sklearn.metrics",
]


def make_ready() -> None:
    """Start the server, which imports while the first tests run."""
    multiprocessing.set_forkserver_preload(IMPORTS)
    forkserver.ensure_running()


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder and with an environment, and nothing of the tests' own."""
    with tempfile.TemporaryDirectory() as temporary:
        streams = [Path(temporary) / "stdout", Path(temporary) / "stderr"]
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=_command, args=(arguments, folder, environment, streams))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, *(stream.read_text() for stream in streams))


def _command(arguments: list[str], folder: Path, environment: dict[str, str], streams: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, stream in enumerate(streams, 1):
        opened = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    main(arguments, prog_name="fmnist-search")
