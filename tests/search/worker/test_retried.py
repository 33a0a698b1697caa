"""A search survives an artifact store that is unreachable for a while, and files that cannot be deleted."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from moto.server import ThreadedMotoServer
from optuna.trial import TrialState

from search.artifacts import ArtifactError, open_artifacts
from search.database import retry
from search.database.retry import is_transient
from search.queue.reaper import reap
from search.study.places import artifacts_of
from search.study.record import ATTEMPTS, checkpoint_of
from search.worker.loop import work
from tests.conftest import Make
from tests.factories import definition

ATTEMPTS_UNTIL_BACK = 15  # failed attempts; together they take longer than the lease's grace


class Server:
    """An S3 server that can be stopped; all such servers in this process share their buckets."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._moto.start()
        _, self.port = self._moto.get_host_and_port()

    def stop(self) -> None:
        self._moto.stop()
        assert self._moto._server
        self._moto._server.server_close()


@pytest.fixture
def server(s3: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.2)
    yield running
    running.stop()


def reported(study: optuna.Study) -> bool:
    return bool(study.get_trials(deepcopy=False)[0].intermediate_values)


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def test_writes_to_an_unreachable_bucket_are_retried(bucket: str, server: Server, make: Make) -> None:
    """Meanwhile the worker keeps its trial, and trains nothing twice."""
    study, settings = make(definition(), 2, artifacts=bucket)
    calls = 0

    def stopping() -> bool:  # called after each report and before each retry
        nonlocal calls
        assert reap(study) == 0
        calls += reported(study)
        if calls == 1:
            server.stop()
        if calls == ATTEMPTS_UNTIL_BACK:
            server.start()
        return False

    work(replace(settings, grace=1.0), stopping)
    assert calls > ATTEMPTS_UNTIL_BACK
    trials = study.get_trials(deepcopy=False)
    assert states(study) == [TrialState.COMPLETE] * 2
    assert [len(trial.user_attrs[ATTEMPTS]) for trial in trials] == [1, 1]
    assert {checkpoint_of(trial) for trial in trials} < set(open_artifacts(f"{bucket}/s").names())


def test_a_bucket_that_stays_unreachable_ends_the_worker_and_returns_its_ticket(
    bucket: str, server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 1, artifacts=bucket)
    monkeypatch.setattr(retry, "PATIENCE", 0.5)
    stopped = False

    def stopping() -> bool:
        nonlocal stopped
        if reported(study) and not stopped:
            server.stop()
            stopped = True
        return False

    with pytest.raises(ArtifactError, match="is unreachable"):
        work(settings, stopping)
    server.start()
    assert states(study) == [TrialState.WAITING]


def test_a_stopping_worker_does_not_wait_for_a_bucket(bucket: str, server: Server, make: Make) -> None:
    study, settings = make(definition(), 1, artifacts=bucket)
    calls = 0

    def stopping() -> bool:
        nonlocal calls
        calls += reported(study)
        if calls == 1:
            server.stop()
        return calls > 2

    work(settings, stopping)
    server.start()
    assert states(study) == [TrialState.WAITING]


def test_a_checkpoint_that_cannot_be_deleted_ends_no_search(make: Make) -> None:
    study, settings = make(definition(), 2)
    blocked: list[Path] = []

    def stopping() -> bool:
        name = checkpoint_of(study.get_trials(deepcopy=False)[0])
        if name and not blocked:  # a folder cannot be deleted like a file
            path = Path(artifacts_of(study).location, name)
            path.unlink()
            path.mkdir()
            blocked.append(path)
        return False

    work(settings, stopping)
    assert states(study) == [TrialState.COMPLETE] * 2
    assert blocked[0].is_dir()


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_which_errors_of_a_file_system_are_transient(error: OSError, transient: bool) -> None:
    assert is_transient(error) == transient


def test_a_missing_bucket_is_not_a_transient_error(s3: None) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_artifacts("s3://no-such-bucket/x").read("a")
    assert not is_transient(caught.value)
