import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from search.storage import open_storage
from search.url import default_url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dashboard(output: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "search", "dashboard", "--output", str(output), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    storage = open_storage(default_url(tmp_path), "create")
    study = optuna.create_study(storage=storage, study_name="shown", direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.9))
    process = dashboard(tmp_path, free_port())
    assert process.stdout
    address = re.match(r"(http://127\.0\.0\.1:\d+/)", process.stdout.readline())
    assert address, process.stderr
    yield address.group(1), process
    process.kill()
    process.communicate()


def test_it_serves_the_studies_to_this_machine(served: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = served
    with urllib.request.urlopen(f"{address}dashboard/") as page:  # noqa: S310
        assert page.status == 200
    with urllib.request.urlopen(f"{address}api/studies") as answer:  # noqa: S310
        names = [study["study_name"] for study in json.load(answer)["study_summaries"]]
    assert names == ["shown"]
    listening = Path(f"/proc/{process.pid}/net/tcp").read_text()
    port = f"{int(address.split(':')[-1].strip('/')):04X}"
    addresses = {row.split()[1] for row in listening.splitlines()[1:] if row.split()[1].endswith(port)}
    assert addresses == {f"0100007F:{port}"}


def test_ctrl_c_ends_it_quietly(served: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = served
    with urllib.request.urlopen(address):  # noqa: S310
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert "Traceback" not in errors


def test_a_port_in_use_is_one_line(served: tuple[str, subprocess.Popen[str]], tmp_path: Path) -> None:
    port = int(served[0].split(":")[-1].strip("/"))
    second = dashboard(tmp_path, port)
    _, errors = second.communicate()
    assert second.returncode == 1
    assert errors == f"Error: port {port} cannot be opened (Address already in use); choose another with --port\n"
