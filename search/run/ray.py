"""Workers on a Ray cluster: Ray places the loop of `search.worker.loop` and restarts it elsewhere if a node dies.

A task is a worker, not a trial: queue, pruning and retries are the same as on one machine. Each node needs
fmnist-search installed for Ray's Python, the data set, and access to the database and the artifact store; nothing is
uploaded. An idle worker takes the ticket of a dead node after its grace.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from fmnist.errors import ExpectedError
from fmnist.files import expand
from search import logs
from search.database.connection import open_storage
from search.database.retry import reported, retry
from search.database.url import absolute
from search.queue.lease import this_worker
from search.queue.reaper import release
from search.queue.tickets import TooManyFailures, check_failures
from search.run.local import TICK, WorkersDied, tolerate_outage
from search.study.store import load_study, request_stop, stop_requests
from search.worker.loop import WorkerSettings, is_over, work

CONNECT = 5.0  # seconds for the head of the cluster to accept a connection
RESTARTS = 100  # restarts of a worker whose process or node dies, or that ends while work is left
CANCEL = 10.0  # seconds for Ray to kill workers
# No usage statistics; at a wrong port Ray would try 20 times for 40 s.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_NUM_REDIS_GET_RETRIES": "2"}

log = logging.getLogger(__package__)


class ClusterError(ExpectedError):
    """The Ray cluster cannot be used; the message says what to do."""


def run_workers(
    study: optuna.Study,
    settings: list[WorkerSettings],
    address: str,
    stopping: Callable[[], bool],
    on_tick: Callable[[], None],
) -> None:
    """Run one worker for each of `settings` on the cluster, and restart ended ones, until no work is left.

    However this function ends, no worker outlives it; tickets of workers killed on other machines stay held for their
    grace. Workers wait for free resources of the cluster.

    Args:
        address: HOST:PORT of the cluster's head, or "auto" for the cluster to which this machine belongs.
        stopping: True lets all workers of the study finish their epoch, return their tickets and end.
        on_tick: called about every second.

    Raises:
        ClusterError: Ray is not installed, or there is no cluster.
        WorkersDied: the workers cannot continue.
        TooManyFailures: too many trials failed.
    """
    failure: ExpectedError | None = None
    stop_requested = False
    request = retry(lambda: stop_requests(study), stopping)
    with _connected(address) as ray:
        workers = {_start(ray, each, request): each for each in settings}
        log.info("%d workers submitted to the cluster; their log lines are in Ray's log files", len(workers))
        left = RESTARTS * len(settings)
        try:
            while workers:
                ended, _ = ray.wait(list(workers), timeout=TICK)
                if not stop_requested and (failure or stopping()):
                    retry(lambda: request_stop(study), stopping)
                    _cancel(ray, workers)
                    stop_requested = True
                try:
                    for worker in ended:
                        its = workers.pop(worker)
                        _check(ray, worker, stop_requested)
                        if stop_requested or failure or retry(lambda: is_over(study, its), stopping):  # noqa: B023
                            continue
                        log.warning("a worker on Ray ended while trials are left; starting another")
                        left -= 1
                        if left < 0:
                            raise WorkersDied(f"workers on Ray ended {RESTARTS} times each while trials were left")
                        # If a request to stop ended it, `stopping` is about to return True.
                        now = retry(lambda: stop_requests(study), stopping)
                        workers[_start(ray, its, now)] = its
                    retry(lambda: check_failures(study), stopping)
                except (WorkersDied, TooManyFailures) as error:
                    failure = failure or error
                retry(on_tick, stopping)
        finally:
            _cancel(ray, workers, force=True)
            ray.wait(list(workers), num_returns=len(workers), timeout=CANCEL)
            with tolerate_outage():
                release(study)
    if failure:
        raise failure


def _start(ray: Any, settings: WorkerSettings, request: str | None) -> Any:
    # max_calls=1 gives each worker its own process.
    share = {"num_cpus": settings.threads, "num_gpus": int(settings.device == "cuda")}
    return ray.remote(**share, max_retries=RESTARTS, max_calls=1)(_work).remote(_anywhere(settings), request)


def _work(settings: WorkerSettings, request: str | None) -> str | None:
    # Runs in the main thread of a Ray process, and returns the message of an error that the user can fix. `request` is
    # the last request to stop from before the search: a worker that starts late or again obeys later ones.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray cancels a running task with it; see `_cancel`
    try:
        with reported(settings.storage):
            logs.configure(settings.log_level)
            study = retry(lambda: load_study(open_storage(settings.storage), settings.study))
            with logs.about(study=settings.study, worker=this_worker()):
                work(settings, lambda: _stop_requested(study, request))
    except (ExpectedError, OSError) as error:
        first, *difference = str(error).splitlines()
        return "\n".join([f"{first} (on {socket.gethostname()})", *difference])
    return None


def _stop_requested(study: optuna.Study, request: str | None) -> bool:
    try:
        return stop_requests(study) != request
    except (SQLAlchemyError, StorageInternalError):
        return False  # the worker's own calls retry or raise


def _anywhere(settings: WorkerSettings) -> WorkerSettings:
    # The settings independent of this process's working directory and environment.
    data_dir = settings.data_dir or os.environ.get("FMNIST_DATA")
    return replace(
        settings,
        storage=absolute(settings.storage).render_as_string(hide_password=False),
        data_dir=expand(data_dir).resolve() if data_dir else None,
        output=settings.output and settings.output.resolve(),
    )


def _cancel(ray: Any, workers: Iterable[Any], *, force: bool = False) -> None:
    # Without `force` this cancels only workers that still wait for resources, because running ones ignore SIGINT.
    for worker in workers:
        ray.cancel(worker, force=force)


def _check(ray: Any, worker: Any, cancelled: bool) -> None:
    # Raise WorkersDied if the worker ended with an unrecoverable error.
    try:
        message = ray.get(worker)
    except ray.exceptions.RayError as error:
        if cancelled and isinstance(error, ray.exceptions.TaskCancelledError):
            return
        raise WorkersDied(_reason(getattr(error, "cause", None) or error)) from error
    if message:
        raise WorkersDied(message)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    # Connect as a driver of the cluster, with Ray's output suppressed and our signal handlers kept.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            "--engine ray needs the extra `ray`; in the checkout of fmnist-search: pip install -e '.[ray]'"
        ) from error
    before = signal.getsignal(signal.SIGTERM)
    try:
        _check_reachable(address)
        ray._private.worker._worker_logs_enabled = False  # log_to_driver=False does not silence messages on dead nodes
        # A job of Ray's client, because for others Ray puts our working directory first on the workers' import path.
        job = ray.job_config.JobConfig(_client_job=True)
        ray.init(address=address, job_config=job, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"no usable Ray cluster at {address}: {_in_one_line(error)}. Start one with `ray start --head`, or name "
            "one with the same versions of Ray and Python with --address HOST:PORT (RAY_AUTH_MODE=token if it requires "
            "a token)"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    # Ray itself would try for minutes, and for "local" would start a cluster.
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(os.environ.get("RAY_ADDRESS") or address if address == "auto" else address)
    if found is None or "://" in found:
        raise ValueError("name its head as HOST:PORT, or run this on a machine of the cluster")
    host, port = found.rsplit(":", 1)
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()


def _reason(error: BaseException) -> str:
    if "failed to import on the worker" in str(error):  # Ray's message, followed by a traceback
        last = str(error).strip().splitlines()[-1]
        return f"fmnist-search is missing on a node of the Ray cluster ({last}): install it there, for Ray's Python"
    return f"a worker on Ray ended with {type(error).__name__}: {_in_one_line(error)}"


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
