"""The dashboard as a real process, and requests to it."""

import base64
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.processes import Process

SECRET = "päss:w0rd"  # noqa: S105  # with a colon and a non-ASCII letter
USER = "mé"


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: HTTPMessage

    def json(self) -> Any:
        return json.loads(self.body)


class Site(NamedTuple):
    """A running dashboard, with its own output folder."""

    output: Path
    address: str
    process: Process

    def ask(self, path: str, method: str = "GET", body: object = None, **headers: str) -> Answer:
        """Send one request; the path is sent verbatim."""
        host = urlsplit(self.address)
        connection = HTTPConnection(host.hostname or "", host.port, timeout=50)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        answer = Answer(response.status, response.read(), response.headers)
        connection.close()
        return answer

    def study(self) -> Any:
        return self.ask("/api/studies/1").json()

    def artifact(self, trial: dict[str, Any], name: str) -> str:
        """The path of a trial's artifact."""
        identifier = next(each["artifact_id"] for each in trial["artifacts"] if each["filename"] == name)
        return f"/artifacts/1/{trial['trial_id']}/{identifier}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(output: Path, *arguments: str, port: int | None = None, **environment: str) -> Process:
    """Start the command as a process without a terminal."""
    call = ("dashboard", "--output", output, "--port", str(port or free_port()), *arguments)
    with Path(os.devnull).open() as nothing:
        return Process(*call, cwd=Path.cwd(), env=os.environ | environment, stdin=nothing.fileno())


@contextmanager
def serving(output: Path, *arguments: str, **environment: str) -> Iterator[Site]:
    process = started(output, *arguments, **environment)
    assert process.stdout
    line = process.stdout.readline()
    address = re.match(r"(http://127\.0\.0\.1:\d+)/", line)
    if address is None:
        pytest.fail(f"{line}{process.communicate()[1]}")
    yield Site(output, address.group(1), process)
    process.kill()
    process.communicate()


def refused(output: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and error line of a command that must print nothing else."""
    process = started(output, *arguments, **environment)
    printed, errors = process.communicate()
    assert printed == ""
    assert "Traceback" not in errors
    return process.returncode, errors.splitlines()[-1]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
