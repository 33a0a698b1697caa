"""Crashes during a search on both databases: the number of trials stays exact and nothing is lost."""

import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna.trial import FrozenTrial, TrialState

from fmnist import checkpoint
from fmnist.data import DataSet
from fmnist.errors import ExpectedError
from fmnist.training import EpochMetrics
from search.database.connection import open_storage
from search.queue import lease
from search.queue.reaper import alive, release
from search.results.finalists import define, standings_of
from search.run import local
from search.study import space
from search.study.record import ATTEMPTS, checkpoint_of
from search.study.store import definition_of, finalists_of, load_study
from search.worker.loop import WorkerSettings, work
from search.worker.reproduce import reproduce
from tests.children import be_a_worker, be_one_of_many, claim_and_die, never, spawn, together
from tests.conftest import Make, worker_pids
from tests.factories import definition
from tests.postgresql import Server
from tests.processes import Process

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

# One kind of database for tests of processes.
ON_SQLITE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("url", ["postgresql"], indirect=True)

CHAOS = """\
sampler = "random"
pruner = "none"
finalists = 0

[defaults]
architecture = "simple"
epochs = 5
filters = 16

[space]
epochs = { low = 3, high = 6 }
learning_rate = { low = 0.0005, high = 0.01, log = true }
"""

QUICK = (
    CHAOS.replace("low = 3, high = 6", "low = 1, high = 2")
    .replace("epochs = 5", "epochs = 2")
    .replace("filters = 16", "filters = 4")
)


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False)


def states(study: optuna.Study) -> Counter[TrialState]:
    return Counter(trial.state for trial in trials_of(study))


def attempts_of(trial: FrozenTrial) -> list[dict[str, object]]:
    attempts: list[dict[str, object]] = trial.user_attrs.get(ATTEMPTS, [])
    return attempts


def reports(study: optuna.Study) -> int:
    return sum(len(trial.intermediate_values) for trial in trials_of(study))


def wait_for(condition: Callable[[], object], process: Process | None = None) -> None:
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def assert_exact(study: optuna.Study, trials: int) -> None:
    """Check that exactly `trials` trials finished, each in its last attempt, and nothing is left over."""
    found = states(study)
    assert found[TrialState.COMPLETE] + found[TrialState.PRUNED] == trials
    assert found[TrialState.RUNNING] == found[TrialState.WAITING] == 0
    for trial in trials_of(study):
        ends = [attempt["outcome"] in ("complete", "pruned") for attempt in attempts_of(trial)]
        assert ends == [False] * (len(ends) - 1) + [trial.state in FINISHED], trial.number


def assert_all_finalists_trained(study: optuna.Study) -> None:
    """Check that each finalist that was not eliminated has its three seeds, and that no trial is left over."""
    standings, finalist_study = standings_of(study), finalists_of(study)
    assert standings is not None
    assert finalist_study is not None
    wanted, size = standings.wanted, len(definition_of(finalist_study).grid)
    assert 2 * size < wanted <= 3 * size
    assert_exact(finalist_study, wanted)
    assert len(trials_of(finalist_study)) == wanted


@pytest.fixture
def search(tmp_path: Path, tiny_folder: Path) -> Iterator[Callable[..., Process]]:
    """Start `fmnist-search run` in the background."""
    started: list[Process] = []

    def start(url: str, study: str, *arguments: str) -> Process:
        (tmp_path / "chaos.toml").write_text(study)
        environment = {**os.environ, "FMNIST_DATA": str(tiny_folder)}
        started.append(Process("run", "chaos.toml", "--storage", url, *arguments, cwd=tmp_path, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def the_study(url: str, process: Process) -> optuna.Study:
    """The study of a search that has just been started, once it exists."""
    while True:
        assert process.poll() is None, process.communicate()
        try:
            return load_study(open_storage(url), "chaos")
        except ExpectedError:
            time.sleep(0.1)


@pytest.mark.timeout(3600)
def test_chaos(
    url: str, search: Callable[..., Process], tmp_path: Path, tiny: DataSet, pytestconfig: pytest.Config
) -> None:
    """Workers are repeatedly killed or terminated at random moments; trials end as if nothing had happened."""
    kills: int = pytestconfig.getoption("--kills")
    trials = 2 * kills
    chance = random.Random(7)
    process = search(url, CHAOS, "--trials", str(trials), "--workers", "4", "--keep", str(trials))
    study = the_study(url, process)
    checkpoints = tmp_path / "studies" / "chaos" / "checkpoints"
    seen: dict[int, list[EpochMetrics]] = {}  # saved epochs of the running trials before a kill
    terminated: set[int] = set()  # they end after their epoch
    made: Counter[str] = Counter()

    def workers() -> list[int]:
        return [pid for pid in worker_pids(process.pid) if pid not in terminated]

    for number in range(kills):
        goal = reports(study) + 1 + chance.randrange(3)  # so that some workers start a new trial
        wait_for(lambda goal=goal: reports(study) >= goal and len(workers()) == 4, process)  # type: ignore[misc]
        seen |= saved_so_far(study, checkpoints)
        kind = ("kill one", "stop one", "kill one", "stop all")[number % 4]
        made[kind] += 1
        for pid in workers() if kind == "stop all" else [chance.choice(workers())]:
            if kind == "kill one":
                os.kill(pid, signal.SIGKILL)
            else:
                terminated.add(pid)
                os.kill(pid, signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"Done: {trials} trials" in output

    study = load_study(open_storage(url), "chaos")  # the other object may have cached old states of failed trials
    assert_exact(study, trials)
    outcomes = [str(attempt["outcome"]) for trial in trials_of(study) for attempt in attempts_of(trial)]
    died, given_back = sum("died" in outcome for outcome in outcomes), outcomes.count(lease.GIVEN_BACK)
    assert died + given_back >= kills // 4  # the others were still starting
    histories = {}
    for trial in trials_of(study):
        if name := checkpoint_of(trial):
            histories[trial.number] = checkpoint.load(checkpoints / name).history
    complete = {trial.number for trial in trials_of(study) if trial.state == TrialState.COMPLETE}
    assert histories.keys() == complete
    resumed = {number: before for number, before in seen.items() if number in histories}
    assert len(resumed) >= 3
    for number, before in resumed.items():  # identical seconds: it resumed instead of restarting
        assert histories[number][: len(before)] == before
    interrupted = [number for number in sorted(complete) if len(attempts_of(study.trials[number])) > 1]
    for number in interrupted:
        reproduction = reproduce(study, number, tiny, lambda _: None)
        assert reproduction.same_metrics
        assert reproduction.same_weights
    most = max(len(attempts_of(trial)) for trial in trials_of(study))
    print(
        f"\n{url[:8]}: {dict(made)}: {died} died within a trial, {given_back} gave theirs back; {len(interrupted)} "
        f"interrupted trials are the same bit for bit; {states(study)}; most attempts at a trial: {most}"
    )


def saved_so_far(study: optuna.Study, checkpoints: Path) -> dict[int, list[EpochMetrics]]:
    found = {}
    for trial in trials_of(study):
        if trial.state == TrialState.RUNNING and (name := checkpoint_of(trial)):
            try:
                found[trial.number] = checkpoint.load(checkpoints / name).history
            except checkpoint.CheckpointError:
                continue  # the next checkpoint has replaced it
    return found


def test_a_resumed_process_that_lost_its_ticket_writes_nothing(make: Make, url: str) -> None:
    slow = {"architecture": "simple", "epochs": 24, "filters": 16}
    defined = definition(defaults=slow, space={"learning_rate": {"choices": [0.001, 0.002]}})
    study, settings = make(defined, 1, url)
    settings = replace(settings, grace=2.0)
    zombie = spawn(be_a_worker, settings)
    assert zombie.pid
    wait_for(lambda: len(trials_of(study)[0].intermediate_values) > 2)
    while True:
        os.kill(zombie.pid, signal.SIGSTOP)
        wait_for(lambda: is_stopped(zombie.pid))  # until then it may begin another transaction
        if no_writer(url):
            break  # stopped during training, as almost always, not inside a transaction
        os.kill(zombie.pid, signal.SIGCONT)
    work(settings, never)  # waits for the grace, takes over the trial and ends it
    (before,) = trials_of(study)
    assert_exact(study, 1)
    assert "made no progress" in str(attempts_of(before)[0]["outcome"])
    assert len(attempts_of(before)) == 2
    assert zombie.is_alive()
    os.kill(zombie.pid, signal.SIGCONT)
    zombie.join()
    assert zombie.exitcode == 0
    assert study.get_trials() == [before]


def is_stopped(pid: int) -> bool:
    """Whether each thread of a process has been stopped by a signal."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


def no_writer(url: str) -> bool:
    """Whether no other process holds a write transaction."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True
    with psycopg.connect(url) as connection:
        try:
            connection.execute("SELECT * FROM trials FOR UPDATE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            return False
        return True


@pytest.mark.parametrize("machine", [None, "one that vanished"])
def test_a_worker_killed_before_its_first_epoch_loses_no_ticket(make: Make, url: str, machine: str | None) -> None:
    study, settings = make(definition(), 2, url)
    process = spawn(claim_and_die, url, machine)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert states(study) == {TrialState.RUNNING: 1, TrialState.WAITING: 1}
    work(settings, never)
    assert_exact(study, 2)
    reason = str(attempts_of(trials_of(study)[0])[0]["outcome"])
    assert ("made no progress" if machine else "died") in reason


@ON_SQLITE
def test_killing_the_parent_leaves_no_orphan_workers(url: str, search: Callable[..., Process]) -> None:
    process = search(url, CHAOS, "--trials", "30", "--workers", "2")
    study = the_study(url, process)
    wait_for(lambda: states(study)[TrialState.RUNNING] == 2, process)
    pids = worker_pids(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, pids)))
    held = states(study)[TrialState.RUNNING]
    assert release(load_study(open_storage(url, "write"), "chaos")) == held
    assert states(study)[TrialState.RUNNING] == 0


@ON_POSTGRESQL
def test_finalists_continue_after_their_parent_was_killed(url: str, search: Callable[..., Process]) -> None:
    arguments = ("--trials", "3", "--workers", "2", "--finalists", "2")
    process = search(url, QUICK, *arguments)
    wait_for(lambda: finalists_of(the_study(url, process)) is not None, process)
    finalist_study = load_study(open_storage(url), "chaos.finalists")
    wait_for(lambda: reports(finalist_study) > 7, process)
    process.kill()
    process.wait()
    output, errors = search(url, QUICK, *arguments).communicate()
    assert all("taken over, back in the queue" in line for line in errors.splitlines())
    assert "Winner: trial" in output
    assert_exact(load_study(open_storage(url), "chaos"), 3)
    assert_all_finalists_trained(load_study(open_storage(url), "chaos"))
    assert max(len(attempts_of(trial)) for trial in trials_of(finalist_study)) <= 2


def test_a_search_survives_a_restart_of_postgresql(postgresql: Server, search: Callable[..., Process]) -> None:
    url = postgresql.create_database()
    process = search(url, CHAOS, "--trials", "6", "--workers", "2")
    study = the_study(url, process)
    wait_for(lambda: reports(study) > 4, process)
    postgresql.stop()
    waiting: set[str] = set()
    assert process.stderr
    while len(waiting) < 3:  # both workers, and the command itself
        line = process.stderr.readline()
        subject = re.fullmatch(r"\S+ \S+ WARNING (.*): waiting for the database for up to \d+ s more: .*\n", line)
        assert subject, line
        waiting.add(subject[1].rpartition("worker ")[2])
    postgresql.start()
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert all("waiting for the database" in line or "resumed after" in line for line in errors.splitlines())
    assert "Done: 6 trials, 6 complete" in output
    assert_exact(study, 6)
    assert all(len(attempts_of(trial)) == 1 for trial in trials_of(study))


def test_a_search_survives_repeated_loss_of_its_connections(postgresql: Server, search: Callable[..., Process]) -> None:
    """As by an administrator, firewall or pooler, from the start of a run to the end of its finalists and report."""
    url = postgresql.create_database()
    process = search(url, QUICK, "--trials", "4", "--workers", "2", "--finalists", "1")
    ended = 0
    with psycopg.connect(postgresql.url(), autocommit=True) as connection:
        while process.poll() is None:
            mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            ended += len(connection.execute(mine, [url.rpartition("/")[2]]).fetchall())
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert ended > 3
    assert "Winner: trial" in output
    study = load_study(open_storage(url), "chaos")
    assert_exact(study, 4)
    assert len(trials_of(study)) == 4
    assert_all_finalists_trained(study)


@ON_SQLITE
def test_two_concurrent_runs_do_not_add_up(url: str, search: Callable[..., Process]) -> None:
    runs = [search(url, CHAOS, "--trials", trials, "--workers", "1") for trials in ("6", "9")]
    for process in runs:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "Done: 9 trials" in output or "Done: 6 trials" in output
    study = load_study(open_storage(url), "chaos")
    assert_exact(study, 9)
    assert len(trials_of(study)) == 9


@ON_POSTGRESQL
def test_two_runs_that_end_together_train_the_finalists_once(url: str, search: Callable[..., Process]) -> None:
    """Also if workers are terminated on the way, which a command might mistake for the end of the search."""
    arguments = ("--trials", "6", "--workers", "2", "--finalists", "2")
    runs = [search(url, QUICK, *arguments) for _ in range(2)]
    study = the_study(url, runs[0])
    wait_for(lambda: reports(study) and all(worker_pids(process.pid) for process in runs), runs[0])
    for process in runs:
        for pid in worker_pids(process.pid):
            os.kill(pid, signal.SIGTERM)
    for process in runs:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "Winner: trial" in output
    assert_exact(load_study(open_storage(url), "chaos"), 6)
    chosen = define(load_study(open_storage(url), "chaos"), 2, 3)
    assert chosen
    finalist_study = load_study(open_storage(url), "chaos.finalists")
    assert_exact(finalist_study, 3 * len(chosen.grid))
    assert len(trials_of(finalist_study)) == 3 * len(chosen.grid)
    trained = Counter(space.key(trial.params) for trial in trials_of(finalist_study))
    assert trained == dict.fromkeys(map(space.key, space.grid(chosen)), 3)


@pytest.mark.parametrize(("url", "processes", "trials"), [("postgresql", 6, 60), ("sqlite", 4, 40)], indirect=["url"])
def test_processes_that_start_together_run_the_exact_number_of_trials(
    url: str, processes: int, trials: int, tiny_folder: Path, tmp_path: Path
) -> None:
    barrier = local.process_context().Barrier(processes)
    settings = WorkerSettings(url, "s", tiny_folder)
    with together(be_one_of_many, processes, settings, definition(sampler="random"), trials, tmp_path / "s", barrier):
        pass
    study = load_study(open_storage(url), "s")
    assert_exact(study, trials)
    assert len(trials_of(study)) == trials
    assert all(len(attempts_of(trial)) == 1 for trial in trials_of(study))
