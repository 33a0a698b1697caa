"""The worker's loop in this process, and worker processes that are really started, stopped and killed."""

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

from fmnist.device import fastest
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
    """Make a pool of workers, none of which is started yet."""
    with logs.gathered() as lines:
        yield lambda study, settings: local.Pool(study, settings, lines)


@pytest.mark.parametrize(
    ("sampler", "pruner"), [(name, PRUNERS[i]) for i, name in enumerate(SAMPLERS)], ids=lambda name: str(name)
)
def test_every_sampler_and_pruner_drains_its_queue(make: Make, sampler: str, pruner: str) -> None:
    study, settings = make(definition(sampler=sampler, pruner=pruner), 5)
    work(settings, never)
    assert len(states(study)) == 5
    assert set(states(study)) <= {COMPLETE, TrialState.PRUNED}
    assert study.trials[0].params == {"filters": 4, "learning_rate": 0.002}
    assert all(trial.user_attrs[ATTEMPTS][-1]["pid"] == os.getpid() for trial in study.trials)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_one_worker_comes_to_the_same_trials_from_the_same_seed(
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
    assert len({str(params) for params, *_ in found[0]}) > 5  # of nine points there are


def test_an_attempt_that_raises_is_made_again_and_after_the_third_the_trial_is_replaced(
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
    assert study.trials[0].user_attrs[REASON].startswith("OutOfMemoryError: tried to allocate (attempt 3")
    assert len(attempts(study)) == 3
    assert len(attempts(study, 1)) == 1


def test_a_study_in_which_everything_fails_stops_after_a_bounded_number(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 40)
    monkeypatch.setattr("search.worker.loop.run_trial", lambda *_: 1 / 0)
    for _ in range(2):  # a second worker does not even begin
        with pytest.raises(tickets.TooManyFailures, match="4 trials failed, the last one with: ZeroDivisionError"):
            work(settings, never)
        assert states(study).count(FAIL) == tickets.FAILURES + 1
    assert sum(len(attempts(study, number)) for number in range(40)) == 12


def test_a_diverged_trial_is_pruned_and_the_sampler_learns_from_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(definition(), 2)
    monkeypatch.setattr("fmnist.training.F.cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
    work(settings, never)
    assert states(study) == [TrialState.PRUNED] * 2
    assert study.trials[0].user_attrs[REASON] == "diverged: the training loss is nan in epoch 1"


def test_a_disk_that_is_full_is_one_error_and_the_ticket_goes_back(
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


def test_what_all_workers_would_meet_ends_them_with_one_line(make: Make, tmp_path: Path) -> None:
    study, settings = make(definition(), 4)
    (tmp_path / "s" / "checkpoints" / "study.id").unlink()
    with pytest.raises(local.WorkersDied, match=r"the checkpoints of study 's' are in .*share that folder"):
        local.run_workers(study, [settings] * 2, never, lambda: None)
    assert states(study) == [WAITING] * 4


def test_a_hung_trial_falls_silent_and_is_taken_over(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = make(definition(), 1)
    real = Training._train_quarter
    at_takeover: list[list[int]] = []

    def hangs_once(training: Training, *arguments: object) -> object:
        if training.quarters == 1 and not at_takeover:
            while not reap(study):  # as another worker would; nothing else ends it
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


def test_workers_that_are_stopped_give_back_what_they_have_begun(make: Make, url: str) -> None:
    study, settings = make(LONG, 2, url)
    local.run_workers(study, [settings], lambda: bool(reported(study)), lambda: None)
    assert states(study) == [WAITING] * 2
    assert attempts(study)[-1]["outcome"] == "given back"
    assert attempts(study)[-1]["step"] == max(reported(study))


def test_stop_reaches_workers_anywhere_and_those_that_start_later_go_on(make: Make, url: str, pooled: Pooled) -> None:
    study, settings = make(LONG, 1, url)
    for _ in range(2):
        pool, before = pooled(study, [settings]), len(reported(study))
        try:
            pool.fill()
            while len(reported(study)) == before:  # until then a request would not be meant for this worker
                time.sleep(0.05)
            request_stop(study)
            pool.processes[0].join()
        finally:
            pool.kill()
        assert states(study) == [WAITING]
        assert len(reported(study)) > before
    assert [attempt["outcome"] for attempt in attempts(study)] == ["given back"] * 2


def test_a_killed_worker_is_replaced_and_its_trial_goes_on(make: Make, url: str) -> None:
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
def test_workers_told_to_stop_by_others_are_replaced(make: Make, url: str, most: int) -> None:
    """They end with exit code 0, as those do that find the queue empty."""
    study, settings = make(LONG, 2, url)
    told: dict[int, int] = {}  # the workers' process ids by the numbers of their trials

    def tell_them() -> None:
        at_work = [number for number in (0, 1) if reported(study, number)]
        if not told and len(at_work) == 2:
            told.update({number: int(str(attempts(study, number)[-1]["pid"])) for number in at_work[:most]})
            for pid in told.values():
                os.kill(pid, signal.SIGTERM)

    def others_went_on() -> bool:
        return bool(told) and all(
            len(attempts(study, number)) == 2
            and len(reported(study, number)) > int(str(attempts(study, number)[0]["step"])) // 100
            for number in told
        )

    local.run_workers(study, [settings] * 2, others_went_on, tell_them)
    assert len(told) == most
    assert states(study) == [WAITING] * 2
    for number, pid in told.items():
        assert [attempt["outcome"] for attempt in attempts(study, number)] == ["given back"] * 2
        assert attempts(study, number)[0]["pid"] == pid


def test_workers_that_are_told_to_stop_again_and_again_before_they_begin_end_the_search(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 1)
    monkeypatch.setattr(local, "USELESS", 1)
    assert tickets.claim(study, lease.Holder(), "of this process")  # so that nothing is left for them

    def tell_them() -> None:
        for pid in worker_pids(os.getpid()):
            os.kill(pid, signal.SIGTERM)

    with pytest.raises(local.WorkersDied, match=r"2 worker processes in a row ended .* with exit code 0"):
        local.run_workers(study, [settings], never, tell_them)


def test_a_worker_told_to_stop_at_the_end_of_the_queue_is_not_replaced(make: Make, pooled: Pooled) -> None:
    study, settings = make(definition(), 2)
    work(settings, never)
    pool = pooled(study, [settings])
    pool.fill()
    for process in pool.processes.values():
        process.terminate()
        process.join()
    pool.sweep()
    assert (pool.processes, pool.due) == ({}, {})


def test_tickets_added_behind_the_back_of_ended_workers_are_run(make: Make, pooled: Pooled) -> None:
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
def heard(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of each trial that a worker logs as completed."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("completed"):
                act(int(record.subject.split()[2]))

    handler, logger = Handler(), logging.getLogger("search")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def test_a_following_worker_process_that_is_told_to_stop_is_replaced(make: Make) -> None:
    study, settings = make(definition(), 1)

    def act(number: int) -> None:
        if number == 0:
            (pid,) = worker_pids(os.getpid())
            os.kill(pid, signal.SIGTERM)
            with lock(settings.storage):
                tickets.enqueue(study, definition(), 1, {})
        else:
            request_stop(study)

    with heard(act):
        assert join(replace(settings, follow=True, log_level="info"), 1, lambda _: None) is False
    assert states(study) == [COMPLETE] * 2


def test_a_worker_told_to_stop_while_the_database_is_away_does_not_end_the_search(
    make: Make, postgresql: Server
) -> None:
    study, settings = make(definition(), 1, postgresql.create_database())
    ticket = tickets.claim(study, lease.Holder(), "of this process")  # so that the worker has nothing but to wait
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


def test_workers_end_though_the_database_is_gone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_worker_processes_that_crash_again_and_again_end_the_search(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 2)
    monkeypatch.setattr(local, "LONGEST_DELAY", 0.1)
    with pytest.raises(local.WorkersDied, match="6 worker processes in a row ended before they began a trial"):
        local.run_workers(study, [replace(settings, device="no such device")], never, lambda: None)
    assert states(study) == [WAITING] * 2


def test_a_place_whose_workers_crash_does_not_end_a_search_that_others_go_on_with(
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


def test_workers_whose_server_was_killed_are_replaced_and_do_not_go_on_unwatched(make: Make) -> None:
    study, settings = make(LONG, 2)
    servers: set[int] = set()

    def kill_the_server() -> None:
        if reported(study) and not servers:
            servers.update(worker_servers(os.getpid()))
            for server in servers:
                os.kill(server, signal.SIGKILL)

    def went_on() -> bool:
        return (
            bool(servers)
            and len(attempts(study)) == 2
            and len(reported(study)) > int(str(attempts(study)[0]["step"])) // 100
        )

    local.run_workers(study, [settings], went_on, kill_the_server)
    assert states(study) == [WAITING] * 2
    assert not alive(int(str(attempts(study)[0]["pid"])))


def test_a_worker_on_other_data_or_versions_is_refused_with_a_way_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 1)
    monkeypatch.setattr("search.study.store.versions", lambda: {"fmnist_search": "99", "torch": "1"})
    with pytest.raises(StudyError, match=r"other versions \(fmnist_search: .* -> 99; torch: .* -> 1\).*--allow-mixed"):
        work(settings, never)
    assert states(study) == [WAITING]
    work(replace(settings, allow_mixed=True), never)
    assert states(study) == [COMPLETE]


def test_machines_that_train_in_another_precision_are_refused_with_a_way_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 2)
    here, other = ("float32", "bfloat16") if fastest(torch.device("cpu")) == "float32" else ("bfloat16", "float32")
    work(settings, lambda: states(study)[0].is_finished())
    monkeypatch.setattr("search.worker.loop.fastest", lambda _: other)
    with pytest.raises(StudyError, match=f"trained in {here}, but this machine trains in {other}.*--allow-mixed"):
        work(settings, never)
    study._storage.set_study_user_attr(study._study_id, "precision", None)  # as of a study of 0.2.0
    with pytest.raises(StudyError, match=f"trained in {here}, and"):
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


def test_the_fence_of_a_ticket_stands_for_as_long_as_its_heart_beats(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy bears no change of listeners while another thread, that of the heartbeat, begins a transaction."""
    _, settings = make(definition(), 1)
    listeners: list[int] = []

    def look(study: optuna.Study) -> None:
        listeners.append(len(list(backend(study).engine.dispatch.begin)))

    @contextmanager
    def beating(study: optuna.Study, ticket: lease.Ticket, steps: Callable[[], int]) -> Iterator[None]:
        look(study)
        with lease.beating(study, ticket, steps):
            yield
            look(study)

    def watched(trial: optuna.Trial, *arguments: Any) -> Outcome:
        look(trial.study)
        return run_trial(trial, *arguments)

    monkeypatch.setattr(loop, "beating", beating)
    monkeypatch.setattr(loop, "run_trial", watched)
    work(settings, lambda: False)
    assert len(listeners) == 3
    assert len(set(listeners)) == 1


def test_a_study_that_is_deleted_ends_its_workers(make: Make) -> None:
    study, settings = make(LONG, 1)

    def delete() -> bool:
        if optuna.get_all_study_names(study._storage) and reported(study):
            optuna.delete_study(study_name="s", storage=study._storage)
        return False

    work(settings, delete)
    assert optuna.get_all_study_names(study._storage) == []


def test_threads_and_devices_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [local.workers_for(device) for device in ("cpu", "cuda", "mps")] == [8, 2, 1]
    settings = WorkerSettings("sqlite:///x", "s")
    for workers, threads in ((3, 2), (8, 1), (16, 1)):
        assert [each.threads for each in local.shared_out(settings, workers)] == [threads] * workers
    devices = [each.device for each in local.shared_out(replace(settings, device="cuda"), 3)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]


def test_workers_that_follow_end_with_their_database(make: Make, tmp_path: Path) -> None:
    _, settings = make(definition(), 1)

    with (
        heard(lambda _: (tmp_path / "studies.db").unlink()),
        pytest.raises(DatabaseGone, match=r"studies\.db was deleted .*checkpoints are in .*checkpoints"),
    ):
        join(replace(settings, follow=True, log_level="info"), 1, lambda _: None)
    assert not (tmp_path / "studies.db").exists()
