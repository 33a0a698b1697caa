"""Shared fixtures: a small real data set in Fashion-MNIST's format, databases, buckets, and commands."""

import gc
import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from alembic.config import Config
from alembic.script import ScriptDirectory
from click.testing import CliRunner

from fmnist import data
from fmnist.data import DataSet
from search.cli import main
from search.database.connection import lock, open_storage
from search.database.url import default_url
from search.queue import tickets
from search.study.definition import StudyDefinition
from search.study.places import Place
from search.study.store import open_study
from search.worker.loop import WorkerSettings
from tests.factories import STUDY, digits
from tests.postgresql import Server, server
from tests.processes import Process


def pytest_configure() -> None:
    """Make the tests independent of how they are started.

    Shells start background jobs with SIGINT ignored, which child processes would inherit. Under xdist each process is
    pinned to a core, so that threads of different processes do not compete.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if name := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(name.removeprefix("gw")) % len(cores)]})


def pytest_collection_finish() -> None:
    """Avoid two costs of many short tests.

    Garbage collection traverses all objects of torch and other imports, and Optuna loads all of its migration scripts
    for each database that it creates or opens.
    """
    gc.freeze()
    read, known = ScriptDirectory.from_config, {}

    def read_once(config: Config) -> ScriptDirectory:
        folder = config.get_main_option("script_location")
        return known.get(folder) or known.setdefault(folder, read(config))

    ScriptDirectory.from_config = staticmethod(read_once)  # type: ignore[method-assign, assignment]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="kills of workers by the chaos test, per database")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail under CI if a test was skipped: everything that tests need must be installed there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def worker_pids(parent: int) -> list[int]:
    """The worker processes of a search: children of its fork server."""
    return [pid for server in worker_servers(parent) for pid in _children(server)]


def worker_servers(parent: int) -> list[int]:
    """The fork server of a search."""
    return [pid for pid in _children(parent) if b"forkserver" in _names(pid)]


def _names(pid: int) -> bytes:
    """Command line and name of a process."""
    try:
        return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "comm"))
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return b""


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    data.write(folder, *digits())
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> DataSet:
    return data.load(tiny_folder)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; the test runs on SQLite and PostgreSQL."""
    if request.param == "sqlite":
        return default_url(tmp_path)
    running: Server = request.getfixturevalue("postgresql")
    return running.create_database()


BUCKETS = map("bucket-{}".format, itertools.count())


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """An S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use only the tests' S3 server, whatever AWS settings this machine has."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it caches credentials


@pytest.fixture
def bucket(s3: None) -> str:
    """An empty bucket's URL."""
    import boto3

    name = next(BUCKETS)
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


Make = Callable[..., tuple[optuna.Study, WorkerSettings]]


@pytest.fixture
def make(tmp_path: Path, tiny: DataSet, tiny_folder: Path) -> Make:
    """Create the study "s" with tickets in a database, by default SQLite."""

    def made(
        defined: StudyDefinition,
        trials: int,
        url: str | None = None,
        artifacts: str | None = None,
        folder: Path = tmp_path / "s",
    ) -> tuple[optuna.Study, WorkerSettings]:
        url = url or default_url(tmp_path)
        storage = open_storage(url, "create")
        with lock(url):
            study = open_study(storage, "s", defined, tiny, Place(folder, artifacts))
            tickets.top_up(study, defined, trials)
        return study, WorkerSettings(url, "s", tiny_folder)

    return made


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def command(tmp_path: Path, tiny_folder: Path) -> Command:
    """Run fmnist-search as a user would, in its own process and folder; `memory`: limit in bytes."""

    def run(
        *arguments: str | Path, data_dir: Path | None = tiny_folder, memory: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        if data_dir:
            environment["FMNIST_DATA"] = str(data_dir)
        if memory:
            call = ["prlimit", f"--as={memory}", sys.executable, "-m", "search", *map(str, arguments)]
            return subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        process = Process(*arguments, cwd=tmp_path, env=environment)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(arguments, process.wait(), output, errors)

    return run


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Restore logging after commands in this process configured it, so that `caplog` works in later tests."""
    logger = logging.getLogger("search")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def invoke(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run fmnist-search in this process, which saves the imports; for tests that are not about processes."""

    def run(
        *arguments: str | Path, data_dir: Path | None = tiny_folder, home: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        # The data set as an option: the workers' server may have been started by another test with its environment.
        environment = {"FMNIST_SEARCH_DATA_DIR": None if data_dir is None else str(data_dir), "HOME": str(home)}
        call = [str(argument) for argument in arguments]
        with monkeypatch.context() as here:
            here.chdir(tmp_path)
            result = CliRunner(env=environment).invoke(main, call, prog_name="fmnist-search", catch_exceptions=False)
        return subprocess.CompletedProcess(call, result.exit_code, result.stdout, result.stderr)

    return run


Launch = Callable[..., Process]


@pytest.fixture
def launch(tmp_path: Path, tiny_folder: Path) -> Iterator[Launch]:
    """Start a search in the background, in its own session like in a terminal."""
    processes: list[Process] = []

    def launched(*arguments: str, stderr: int = subprocess.STDOUT) -> Process:
        environment = {**os.environ, "FMNIST_DATA": str(tiny_folder)}
        process = Process("run", *arguments, cwd=tmp_path, env=environment, stderr=stderr, start_new_session=True)
        processes.append(process)
        return process

    yield launched
    for process in processes:  # left by a failed test
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def start(launch: Launch, tmp_path: Path) -> Launch:
    """Start a search in the background and wait for the first checkpoint."""

    def started(*arguments: str, stderr: int = subprocess.STDOUT) -> Process:
        process = launch(*arguments, stderr=stderr)
        folder = tmp_path / "studies" / "tiny" / "checkpoints"
        while not list(folder.glob("trial-*.pt")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        return process

    return started
