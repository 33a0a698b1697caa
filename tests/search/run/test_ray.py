"""Workers on a real Ray cluster of two nodes on this machine: they run trials, stop, and survive the loss of a node."""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.database.connection import open_storage
from search.database.url import default_url
from search.queue.lease import GIVEN_BACK, PAUSE
from search.queue.reaper import alive, release
from search.run.local import WorkersDied
from search.run.ray import ClusterError, _work, run_workers
from search.study.record import ATTEMPTS, STEPS_PER_EPOCH
from search.study.store import finalists_of, load_study, request_stop, stop_requests
from tests.conftest import Command, Make
from tests.factories import FREEZING, LONG, STUDY, definition
from tests.fmnist.test_own_network import NET
from tests.postgresql import Server
from tests.processes import Process

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(180)

from ray.cluster_utils import Cluster  # noqa: E402


@pytest.fixture(scope="module")
def started() -> Iterator[Cluster]:
    """A cluster with its own HOME, where Ray stores tokens, logs and the address of the last cluster."""
    home = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a short path, because it contains sockets
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        patch.setenv("RAY_TMPDIR", home)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()
            signal.signal(signal.SIGTERM, before)
            shutil.rmtree(home)


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """Two nodes of one CPU each, and a head without CPUs."""
    while len(started.worker_nodes) < 2:
        started.add_node(num_cpus=1)
    return started


def attempts(trial: FrozenTrial) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = trial.user_attrs.get(ATTEMPTS, [])
    return made


def pids(study: optuna.Study) -> set[int]:
    """The processes that ever worked on the study."""
    return {attempt["pid"] for trial in study.get_trials(deepcopy=False) for attempt in attempts(trial)}


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def on_the_way(study: optuna.Study) -> list[FrozenTrial]:
    """The running trials that have reported."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if trial.intermediate_values]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def at_work(cluster: Cluster, study: optuna.Study, before: float) -> tuple[Any, FrozenTrial] | None:
    """A node and its worker's trial, if that has reported, but not after the epoch `before`."""
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    for trial in on_the_way(study):
        if max(trial.intermediate_values) < before * STEPS_PER_EPOCH:
            stat = Path(f"/proc/{attempts(trial)[-1]['pid']}/stat").read_text()
            return nodes[int(stat.rpartition(")")[2].split()[1])], trial  # a worker's parent is its node's raylet
    return None


def test_the_command_runs_the_exact_number_of_trials_and_prints_nothing_from_ray(
    cluster: Cluster, command: Command, study_file: Path, tmp_path: Path
) -> None:
    ray = ("--engine", "ray", "--address", cluster.address, "--workers", 2)
    done = command("run", study_file, "--trials", 4, "--finalists", 1, *ray)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"2 workers on the Ray cluster at {cluster.address}, torch threads each: 1" in done.stdout
    assert "Warning: SQLite serves only workers on this machine" in done.stdout
    assert "ray" not in done.stdout.replace("Ray cluster at", "")
    study = load_study(open_storage(default_url(tmp_path / "studies")), "tiny")
    finalists = finalists_of(study)
    assert finalists is not None
    assert states(study) == [TrialState.COMPLETE] * 4
    assert set(states(finalists)) == {TrialState.COMPLETE}
    assert all(len(attempts(trial)) == 1 for trial in (*study.trials, *finalists.trials))
    assert "Winner: trial" in done.stdout
    wait_until(lambda: not any(map(alive, pids(study) | pids(finalists))))


def test_the_number_of_trials_is_exact_when_a_node_dies(
    cluster: Cluster, make: Make, postgresql: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = 40
    defaults = {"architecture": "simple", "epochs": epochs, "filters": 4, "learning_rate": 0.002}
    study, settings = make(definition(defaults=defaults), 3, postgresql.create_database())
    lost: list[FrozenTrial] = []

    def kill_a_node() -> None:
        if not lost and (found := at_work(cluster, study, epochs / 2)):
            cluster.remove_node(found[0], allow_graceful=False)
            lost.append(found[1])

    run_workers(study, [replace(settings, grace=3.0)] * 2, cluster.address, lambda: False, kill_a_node)
    assert states(study) == [TrialState.COMPLETE] * 3
    for trial in study.trials:
        *before, last = attempts(trial)
        assert last["outcome"] == "complete"
        assert len(before) == (trial.number == lost[0].number)
        assert max(trial.intermediate_values) == epochs * STEPS_PER_EPOCH
    first, second = attempts(study.trials[lost[0].number])
    assert re.search("died|made no progress", first["outcome"])
    assert first["pid"] != second["pid"]
    assert 0 < first["step"] < epochs * STEPS_PER_EPOCH
    assert lost[0].intermediate_values.items() <= study.trials[lost[0].number].intermediate_values.items()
    assert capsys.readouterr() == ("", "")  # nothing from Ray


def test_trials_are_paused_and_continued_on_a_cluster(cluster: Cluster, make: Make, postgresql: Server) -> None:
    study, settings = make(FREEZING, 8, postgresql.create_database())
    run_workers(study, [settings] * 2, cluster.address, lambda: False, lambda: None)
    assert set(states(study)) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(states(study)) == 8
    outcomes = [attempt["outcome"] for trial in study.trials for attempt in attempts(trial)]
    assert set(outcomes) == {PAUSE, "complete"}
    assert len(pids(study)) == 2


@pytest.mark.parametrize("how", ["SIGTERM", "request"])
def test_workers_that_end_while_work_is_left_are_restarted(cluster: Cluster, make: Make, how: str) -> None:
    """Ended by a signal, and by a request to stop that another command handles."""
    defaults = {"architecture": "simple", "epochs": 40, "filters": 4, "learning_rate": 0.002}
    study, settings = make(definition(defaults=defaults), 2)
    ended: list[int] = []

    def end_a_worker() -> None:
        if not ended and (running := on_the_way(study)):
            ended.append(attempts(running[0])[-1]["pid"])
            if how == "SIGTERM":
                os.kill(ended[0], signal.SIGTERM)
            else:
                request_stop(study)

    run_workers(study, [settings], cluster.address, lambda: False, end_a_worker)
    assert states(study) == [TrialState.COMPLETE] * 2
    made = [attempt for trial in study.trials for attempt in attempts(trial)]
    assert [attempt["outcome"] for attempt in made if attempt["pid"] == ended[0]][-1] != "complete"
    assert len(made) > 2


def test_the_worker_of_a_dead_node_is_restarted_on_another(cluster: Cluster, make: Make) -> None:
    study, settings = make(LONG, 2)
    killed: list[int] = []

    def replace_a_node() -> None:
        if not killed and (found := at_work(cluster, study, before=300)):
            cluster.remove_node(found[0], allow_graceful=False)
            killed.append(attempts(found[1])[-1]["pid"])
            cluster.add_node(num_cpus=1)

    def third_at_work() -> bool:
        return len(pids(study)) == 3 and len(on_the_way(study)) == 2

    run_workers(study, [replace(settings, grace=3.0)] * 2, cluster.address, third_at_work, replace_a_node)
    assert states(study) == [TrialState.WAITING] * 2
    assert not any(map(alive, killed))
    assert {attempts(trial)[-1]["outcome"] for trial in study.trials} == {GIVEN_BACK}


def test_ctrl_c_lets_workers_finish_their_epoch_and_cancels_waiting_ones(
    cluster: Cluster, tmp_path: Path, tiny_folder: Path
) -> None:
    (tmp_path / "long.toml").write_text(STUDY.replace("epochs = 2", "epochs = 300"))
    arguments = ["run", "long.toml", "--engine", "ray", "--address", cluster.address, "--workers", "3"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FMNIST_DATA": str(tiny_folder)}
    driver = Process(*arguments, cwd=tmp_path, env=environment)
    try:
        url = default_url(tmp_path / "studies")
        wait_until(lambda: driver.poll() is not None or (tmp_path / "studies" / "long").is_dir())
        study = load_study(open_storage(url), "long")
        wait_until(lambda: len(on_the_way(study)) == 2)
        driver.send_signal(signal.SIGINT)
        output, errors = driver.communicate()
    finally:
        driver.kill()
        driver.communicate()
    assert (driver.returncode, errors) == (130, "")
    assert "Stopping after the running epochs" in output
    assert states(study) == [TrialState.WAITING] * 6
    assert [attempt["outcome"] for trial in study.trials for attempt in attempts(trial)] == [GIVEN_BACK] * 2
    wait_until(lambda: not any(map(alive, pids(study))))


def test_workers_import_nothing_from_the_working_directory_of_the_driver(
    cluster: Cluster, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 1)
    marker = tmp_path / "imported"
    for name in ("fmnist", "search"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    run_workers(study, [settings], cluster.address, lambda: False, lambda: None)
    assert states(study) == [TrialState.COMPLETE]
    assert not marker.exists()


def test_the_file_of_a_users_network_is_sent_to_the_nodes(
    cluster: Cluster, command: Command, study_file: Path, tmp_path: Path
) -> None:
    """Workers start in Ray's folder on a node, and receive the text that the driver has read."""
    (tmp_path / "net.py").write_text(NET)
    named = STUDY.replace('"simple"', '"net.py:CNNModel"').replace("filters = 4\n", "")
    study_file.write_text(named.replace("filters =", "hidden =").replace("high = 4", "high = 8"))
    ray = ("--engine", "ray", "--address", cluster.address, "--workers", 1)
    done = command("run", study_file, "--trials", 2, "--finalists", 1, *ray)
    assert (done.returncode, done.stderr) == (0, "")
    study = load_study(open_storage(default_url(tmp_path / "studies")), "tiny")
    finalists = finalists_of(study)
    assert finalists is not None
    assert {*states(study), *states(finalists)} == {TrialState.COMPLETE}
    recorded = load_study(open_storage(default_url(tmp_path / "studies")), "tiny").user_attrs["network"]
    assert recorded["text"] == NET


def test_a_worker_that_starts_late_obeys_an_earlier_request_to_stop(make: Make) -> None:
    study, settings = make(definition(), 1)
    before = signal.getsignal(signal.SIGINT)
    try:
        earlier = stop_requests(study)
        request_stop(study)
        assert _work(settings, earlier) is None
        assert (states(study), pids(study)) == ([TrialState.WAITING], set())
        assert _work(settings, stop_requests(study)) is None
        assert (states(study), pids(study)) == ([TrialState.COMPLETE], {os.getpid()})
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_worker_outlives_the_driver_and_no_ticket_stays_held(cluster: Cluster, make: Make) -> None:
    study, settings = make(LONG, 2)
    handlers = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))

    def second_ctrl_c() -> None:
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        if len(on_the_way(study)) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers(study, [settings] * 2, cluster.address, lambda: False, second_ctrl_c)
    wait_until(lambda: not any(map(alive, pids(study))))
    release(study)
    assert states(study) == [TrialState.WAITING] * 2
    assert len(pids(study)) == 2


def test_an_unrecoverable_error_of_one_worker_ends_all_with_one_line(cluster: Cluster, make: Make) -> None:
    study, settings = make(LONG, 2)
    broken = replace(settings, data_dir=Path("/nowhere"))
    with pytest.raises(WorkersDied, match=r"^/nowhere: .* \(on \S+\)$"):
        run_workers(study, [settings, broken], cluster.address, lambda: False, lambda: None)
    assert states(study) == [TrialState.WAITING] * 2


@pytest.mark.parametrize("address", ["127.0.0.1:1", "local"])
def test_a_missing_cluster_is_reported_at_once(make: Make, address: str) -> None:
    study, settings = make(definition(), 1)
    started = time.monotonic()
    with pytest.raises(ClusterError, match=rf"^no usable Ray cluster at {address}: .*`ray start --head`"):
        run_workers(study, [settings], address, lambda: False, lambda: None)
    assert time.monotonic() - started < 10
    assert states(study) == [TrialState.WAITING]


def test_the_command_reports_a_missing_cluster_in_one_line(command: Command, study_file: Path) -> None:
    done = command("run", study_file, "--engine", "ray", "--address", "127.0.0.1:1", "--workers", 2, "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: no usable Ray cluster .*\n", done.stderr)
    usage = command("run", study_file, "--engine", "ray")
    assert usage.returncode == 2
    assert "--engine ray needs --workers" in usage.stderr


def test_without_ray_the_error_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(definition(), 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"in the checkout of fmnist-search: pip install -e '\.\[ray\]'"):
        run_workers(study, [settings], "auto", lambda: False, lambda: None)
