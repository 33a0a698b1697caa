"""The worker's loop in this process, and real worker processes that are started, stopped and killed."""

import itertools
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from fmnist.device import default_precision
from fmnist.training import Training
from search import logs
from search.choices import PRUNERS, SAMPLERS
from search.database.connection import lock
from search.database.optuna_schema import backend
from search.database.retry import retry
from search.database.url import DatabaseGone
from search.queue import lease, tickets
from search.queue.reaper import alive, reap
from search.run import local
from search.run.supervise import join
from search.study.places import StudyError
from search.study.record import ATTEMPTS, CHECKPOINT, REASON
from search.study.store import request_stop
from search.worker import loop
from search.worker.loop import WorkerSettings, work
from search.worker.trial import Outcome, run_trial
from tests.children import never
from tests.conftest import Make, worker_pids, worker_servers
from tests.factories import LONG, definition
from tests.postgresql import Server

WAITING, COMPLETE, FAIL = TrialState.WAITING, TrialState.COMPLETE, TrialState.FAIL


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def attempts(study: optuna.Study, number: int = 0) -> list[dict[str, object]]:
    found: list[dict[str, object]] = study.get_trials(deepcopy=False)[number].user_attrs.get(ATTEMPTS, [])
    return found


def reported(study: optuna.Study, number: int = 0) -> dict[int, float]:
    return study.get_trials(deepcopy=False)[number].intermediate_values


Pooled = Callable[[optuna.Study, list[WorkerSettings]], local.Pool]


@pytest.fixture
def pooled() -> Iterator[Pooled]:
    """Create a pool of workers without starting any."""
    with logs.gathered() as lines:
        yield lambda study, settings: local.Pool(study, settings, lines)


@pytest.mark.parametrize(
    ("sampler", "pruner"), [(name, PRUNERS[i]) for i, name in enumerate(SAMPLERS)], ids=lambda name: str(name)
)
def test_every_sampler_and_pruner_completes_its_queue(make: Make, sampler: str, pruner: str) -> None:
    study, settings = make(definition(sampler=sampler, pruner=pruner), 5)
    work(settings, never)
    assert len(states(study)) == 5
    assert set(states(study)) <= {COMPLETE, TrialState.PRUNED}
    assert study.trials[0].params == {"filters": 4, "learning_rate": 0.002}
    assert all(trial.user_attrs[ATTEMPTS][-1]["pid"] == os.getpid() for trial in study.trials)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_trials_with_one_worker(
    make: Make, tmp_path: Path, postgresql: Server, sampler: str
) -> None:
    found = []
    urls = [f"sqlite:///{tmp_path / 'one.db'}", f"sqlite:///{tmp_path / 'two.db'}", postgresql.create_database()]
    for index, (url, seed) in enumerate(zip(urls, (0, 1, 0), strict=True)):
        defaults = {"architecture": "simple", "epochs": 1, "filters": 4, "learning_rate": 0.002}
        defined = definition(sampler=sampler, pruner="halving", seed=seed, defaults=defaults)
        study, settings = make(defined, 14, url, folder=tmp_path / f"s-{index}")
        work(settings, never)
        found.append([(trial.params, trial.value, trial.user_attrs[CHECKPOINT]["weights"]) for trial in study.trials])
    assert found[0] == found[2]
    assert found[0] != found[1]
    assert len({str(params) for params, *_ in found[0]}) > 5  # of nine points


def test_a_failing_attempt_is_retried_and_after_the_third_the_trial_is_replaced(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 3)
    real, calls = torch.nn.Module.train, itertools.count()

    def runs_out_of_memory(*arguments: object) -> object:
        if next(calls) < 3:
            raise torch.OutOfMemoryError("tried to allocate")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.Module, "train", runs_out_of_memory)
    work(settings, never)
    assert states(study) == [FAIL, COMPLETE, COMPLETE, COMPLETE]
    assert study.trials[0].user_attrs[REASON].startswith("OutOfMemoryError: tried to allocate (3 attempts")
    assert len(attempts(study)) == 3
    assert len(attempts(study, 1)) == 1


def test_a_study_whose_trials_all_fail_stops(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(definition(), 40)
    monkeypatch.setattr("search.worker.loop.run_trial", lambda *_: 1 / 0)
    for _ in range(2):  # a second worker claims nothing
        with pytest.raises(tickets.TooManyFailures, match="4 trials failed, the last one with: ZeroDivisionError"):
            work(settings, never)
        assert states(study).count(FAIL) == tickets.FAILURES + 1
    assert sum(len(attempts(study, number)) for number in range(40)) == 12


def test_a_diverged_trial_is_pruned(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(definition(), 2)
    monkeypatch.setattr("fmnist.training.F.cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
    work(settings, never)
    assert states(study) == [TrialState.PRUNED] * 2
    assert study.trials[0].user_attrs[REASON] == "diverged: the training loss is nan in epoch 1"


def test_a_full_disk_is_one_error_and_the_ticket_returns_to_the_queue(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    space = {"learning_rate": {"choices": [0.001, 0.002]}}
    study, settings = make(definition(defaults={"architecture": "cnn", "filters": 64, "epochs": 1}, space=space), 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))  # the database is smaller, a checkpoint larger
    try:
        with pytest.raises(OSError, match="File too large"):
            work(settings, never)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert states(study) == [WAITING] * 2
    assert attempts(study)[-1]["outcome"] == "given back"
    assert [file.name for file in (tmp_path / "s" / "checkpoints").iterdir()] == ["study.id"]


def test_an_unrecoverable_error_ends_all_workers_with_one_line(make: Make, tmp_path: Path) -> None:
    study, settings = make(definition(), 4)
    (tmp_path / "s" / "checkpoints" / "study.id").unlink()
    with pytest.raises(local.WorkersDied, match=r"the checkpoints of study 's' are in .*share that folder"):
        local.run_workers(study, [settings] * 2, never, lambda: None)
    assert states(study) == [WAITING] * 4


def test_a_hung_trial_loses_its_heartbeat_and_is_taken_over(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(definition(), 1)
    real = Training._train_quarter
    at_takeover: list[list[int]] = []

    def hangs_once(training: Training, *arguments: object) -> object:
        if training.quarters == 1 and not at_takeover:
            while not reap(study):  # as another worker would
                time.sleep(0.05)
            at_takeover.append(list(reported(study)))
        return real(training, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_train_quarter", hangs_once)
    work(replace(settings, grace=1.0), never)
    assert states(study) == [COMPLETE]
    assert at_takeover == [[25]]
    assert "made no progress" in str(attempts(study)[0]["outcome"])
    assert attempts(study)[0]["step"] == 25
    assert len(attempts(study)) == 2


def test_stopped_workers_return_their_tickets(make: Make, url: str) -> None:
    study, settings = make(LONG, 2, url)
    local.run_workers(study, [settings], lambda: bool(reported(study)), lambda: None)
    assert states(study) == [WAITING] * 2
    assert attempts(study)[-1]["outcome"] == "given back"
    assert attempts(study)[-1]["step"] == max(reported(study))


def test_a_request_to_stop_reaches_running_workers_and_not_later_ones(make: Make, url: str, pooled: Pooled) -> None:
    study, settings = make(LONG, 1, url)
    for _ in range(2):
        pool, before = pooled(study, [settings]), len(reported(study))
        try:
            pool.fill()
            while len(reported(study)) == before:  # a request before the worker joins would not concern it
                time.sleep(0.05)
            request_stop(study)
            pool.processes[0].join()
        finally:
            pool.kill()
        assert states(study) == [WAITING]
        assert len(reported(study)) > before
    assert [attempt["outcome"] for attempt in attempts(study)] == ["given back"] * 2


def test_a_killed_worker_is_replaced_and_its_trial_continues(make: Make, url: str) -> None:
    study, settings = make(LONG, 1, url)
    before: dict[int, float] = {}

    def kill_the_first() -> None:
        if reported(study) and not before:
            before.update(reported(study))
            os.kill(attempts(study)[-1]["pid"], signal.SIGKILL)  # type: ignore[arg-type]

    local.run_workers(
        study, [settings], lambda: len(attempts(study)) == 2 and len(reported(study)) > len(before), kill_the_first
    )
    assert len(attempts(study)) == 2
    assert "died" in str(attempts(study)[0]["outcome"])
    assert list(reported(study).items())[: len(before)] == list(before.items())
    assert states(study) == [WAITING]


@pytest.mark.parametrize(("url", "most"), [("postgresql", 1), ("sqlite", 2)], ids=["one", "all"], indirect=["url"])
def test_workers_terminated_from_outside_are_replaced(make: Make, url: str, most: int) -> None:
    """Their exit code is 0, as at the end of the queue."""
    study, settings = make(LONG, 2, url)
    terminated: dict[int, int] = {}  # the workers' process ids by the numbers of their trials

    def terminate_them() -> None:
        at_work = [number for number in (0, 1) if reported(study, number)]
        if not terminated and len(at_work) == 2:
            terminated.update({number: int(str(attempts(study, number)[-1]["pid"])) for number in at_work[:most]})
            for pid in terminated.values():
                os.kill(pid, signal.SIGTERM)

    def others_continued() -> bool:
        return bool(terminated) and all(
            len(attempts(study, number)) == 2
            and len(reported(study, number)) > int(str(attempts(study, number)[0]["step"])) // 100
            for number in terminated
        )

    local.run_workers(study, [settings] * 2, others_continued, terminate_them)
    assert len(terminated) == most
    assert states(study) == [WAITING] * 2
    for number, pid in terminated.items():
        assert [attempt["outcome"] for attempt in attempts(study, number)] == ["given back"] * 2
        assert attempts(study, number)[0]["pid"] == pid


def test_workers_that_are_always_terminated_before_a_claim_end_the_search(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 1)
    monkeypatch.setattr(local, "USELESS", 1)
    assert tickets.claim(study, lease.Holder(), "of this process")  # leaves nothing for the workers

    def terminate_them() -> None:
        for pid in worker_pids(os.getpid()):
            os.kill(pid, signal.SIGTERM)

    with pytest.raises(local.WorkersDied, match=r"2 worker processes in a row ended .* with exit code 0"):
        local.run_workers(study, [settings], never, terminate_them)


def test_a_worker_terminated_at_the_end_of_the_queue_is_not_replaced(make: Make, pooled: Pooled) -> None:
    study, settings = make(definition(), 2)
    work(settings, never)
    pool = pooled(study, [settings])
    pool.fill()
    for process in pool.processes.values():
        process.terminate()
        process.join()
    pool.sweep()
    assert (pool.processes, pool.due) == ({}, {})


def test_tickets_added_after_workers_ended_are_run(make: Make, pooled: Pooled) -> None:
    study, settings = make(definition(), 1)
    pool = pooled(study, [settings])
    pool.fill()
    pool.processes[0].join()  # it found the queue empty
    with lock(settings.storage):
        tickets.enqueue(study, definition(), 1, {})
    pool.sweep()
    assert list(pool.due) == [0]
    local.run_workers(study, [settings], never, lambda: None)
    assert states(study) == [COMPLETE] * 2


@contextmanager
def on_completion(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of each trial that a worker logs as completed."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("completed"):
                act(int(record.subject.split()[2]))

    handler, logger = Handler(), logging.getLogger("search")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def test_a_terminated_worker_process_that_follows_is_replaced(make: Make) -> None:
    study, settings = make(definition(), 1)

    def act(number: int) -> None:
        if number == 0:
            (pid,) = worker_pids(os.getpid())
            os.kill(pid, signal.SIGTERM)
            with lock(settings.storage):
                tickets.enqueue(study, definition(), 1, {})
        else:
            request_stop(study)

    with on_completion(act):
        assert join(replace(settings, follow=True, log_level="info"), 1, lambda _: None) is False
    assert states(study) == [COMPLETE] * 2


def test_a_worker_terminated_during_a_database_outage_does_not_end_the_search(make: Make, postgresql: Server) -> None:
    study, settings = make(definition(), 1, postgresql.create_database())
    ticket = tickets.claim(study, lease.Holder(), "of this process")  # the worker can only wait
    assert ticket
    outage: list[threading.Thread] = []

    def lose_the_database_and_the_worker(pid: int) -> None:
        postgresql.stop()
        os.kill(pid, signal.SIGTERM)
        while alive(pid):
            time.sleep(0.05)
        postgresql.start()
        retry(lambda: lease.give_back(study, ticket))

    def begin() -> None:
        pids = worker_pids(os.getpid())
        if pids and not outage:
            outage.append(threading.Thread(target=lose_the_database_and_the_worker, args=pids))
            outage[0].start()

    local.run_workers(study, [settings], never, begin)
    outage[0].join()
    assert states(study) == [COMPLETE]


def test_no_worker_outlives_an_unexpected_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(LONG, 3)
    pids: set[int] = set()

    def lose_the_database() -> None:
        pids.update(int(str(attempts(study, number)[-1]["pid"])) for number in (0, 1) if attempts(study, number))
        if len(pids) == 2:
            monkeypatch.setattr(local, "check_failures", lambda _: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        local.run_workers(study, [settings] * 2, never, lose_the_database)
    assert len(pids) == 2
    assert not any(map(alive, pids))
    assert states(study) == [WAITING] * 3


def test_worker_processes_that_keep_crashing_end_the_search(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(definition(), 2)
    monkeypatch.setattr(local, "LONGEST_DELAY", 0.1)
    with pytest.raises(local.WorkersDied, match="6 worker processes in a row ended before they began a trial"):
        local.run_workers(study, [replace(settings, device="no such device")], never, lambda: None)
    assert states(study) == [WAITING] * 2


def test_a_slot_whose_workers_crash_does_not_end_the_search_of_others(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(LONG, 3)
    monkeypatch.setattr(local, "LONGEST_DELAY", 0.1)
    ended: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("search.run"), logging.Handler()
    monkeypatch.setattr(handler, "emit", ended.append)
    logger.addHandler(handler)
    try:
        local.run_workers(
            study, [settings, replace(settings, device="no such device")], lambda: len(ended) > 8, lambda: None
        )
    finally:
        logger.removeHandler(handler)
    assert states(study) == [WAITING] * 3
    assert len(reported(study)) > 0


def test_workers_whose_server_was_killed_are_killed_and_replaced(make: Make) -> None:
    study, settings = make(LONG, 2)
    servers: set[int] = set()

    def kill_the_server() -> None:
        if reported(study) and not servers:
            servers.update(worker_servers(os.getpid()))
            for server in servers:
                os.kill(server, signal.SIGKILL)

    def continued() -> bool:
        return (
            bool(servers)
            and len(attempts(study)) == 2
            and len(reported(study)) > int(str(attempts(study)[0]["step"])) // 100
        )

    local.run_workers(study, [settings], continued, kill_the_server)
    assert states(study) == [WAITING] * 2
    assert not alive(int(str(attempts(study)[0]["pid"])))


def test_a_worker_with_other_versions_is_refused_unless_mixing_is_allowed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 1)
    monkeypatch.setattr("search.study.store.versions", lambda: {"fmnist_search": "99", "torch": "1"})
    with pytest.raises(StudyError, match=r"other versions \(fmnist_search: .* -> 99; torch: .* -> 1\).*--allow-mixed"):
        work(settings, never)
    assert states(study) == [WAITING]
    work(replace(settings, allow_mixed=True), never)
    assert states(study) == [COMPLETE]


def test_a_worker_with_another_precision_is_refused_unless_mixing_is_allowed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 2)
    here, other = (
        ("float32", "bfloat16") if default_precision(torch.device("cpu")) == "float32" else ("bfloat16", "float32")
    )
    work(settings, lambda: states(study)[0].is_finished())
    monkeypatch.setattr("search.worker.loop.default_precision", lambda _: other)
    with pytest.raises(StudyError, match=f"trained in {here}, but this machine trains in {other}.*--allow-mixed"):
        work(settings, never)
    study._storage.set_study_user_attr(study._study_id, "precision", None)  # as of a study of 0.2.0
    with pytest.raises(StudyError, match=f"trained in {here}, but"):
        work(settings, never)
    assert WAITING in states(study)
    work(replace(settings, allow_mixed=True), never)
    assert states(study) == [COMPLETE] * 2


def test_a_worker_that_follows_waits_for_new_tickets(make: Make) -> None:
    study, settings = make(definition(), 1)
    added: list[int] = []

    def finished() -> bool:
        if states(study) == [COMPLETE] and not added:
            with lock(settings.storage):
                added.append(tickets.enqueue(study, definition(), 1, {}))
        return states(study) == [COMPLETE] * 2

    work(replace(settings, follow=True), finished)
    assert added == [1]
    assert states(study) == [COMPLETE] * 2


def test_the_fence_outlasts_the_heartbeat_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In SQLAlchemy, listeners must not change while another thread (the heartbeat) begins a transaction."""
    _, settings = make(definition(), 1)
    listeners: list[int] = []

    def count_listeners(study: optuna.Study) -> None:
        listeners.append(len(list(backend(study).engine.dispatch.begin)))

    @contextmanager
    def beating(study: optuna.Study, ticket: lease.Ticket, steps: Callable[[], int]) -> Iterator[None]:
        count_listeners(study)
        with lease.beating(study, ticket, steps):
            yield
            count_listeners(study)

    def watched(trial: optuna.Trial, *arguments: Any) -> Outcome:
        count_listeners(trial.study)
        return run_trial(trial, *arguments)

    monkeypatch.setattr(loop, "beating", beating)
    monkeypatch.setattr(loop, "run_trial", watched)
    work(settings, lambda: False)
    assert len(listeners) == 3
    assert len(set(listeners)) == 1


def test_deleting_a_study_ends_its_workers(make: Make) -> None:
    study, settings = make(LONG, 1)

    def delete() -> bool:
        if optuna.get_all_study_names(study._storage) and reported(study):
            optuna.delete_study(study_name="s", storage=study._storage)
        return False

    work(settings, delete)
    assert optuna.get_all_study_names(study._storage) == []


def test_threads_and_devices_are_divided_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [local.workers_for(device) for device in ("cpu", "cuda", "mps")] == [8, 2, 1]
    settings = WorkerSettings("sqlite:///x", "s")
    for workers, threads in ((3, 2), (8, 1), (16, 1)):
        assert [each.threads for each in local.shared_out(settings, workers)] == [threads] * workers
    devices = [each.device for each in local.shared_out(replace(settings, device="cuda"), 3)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]


def test_workers_that_follow_end_if_the_database_is_deleted(make: Make, tmp_path: Path) -> None:
    _, settings = make(definition(), 1)

    with (
        on_completion(lambda _: (tmp_path / "studies.db").unlink()),
        pytest.raises(DatabaseGone, match=r"studies\.db was deleted .*checkpoints are in .*checkpoints"),
    ):
        join(replace(settings, follow=True, log_level="info"), 1, lambda _: None)
    assert not (tmp_path / "studies.db").exists()
