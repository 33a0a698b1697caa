"""Workers on a Ray cluster: Ray places the loop of `search.worker.loop`, and places it anew when a node dies.

A task is a worker, not a trial: queue, pruning and retries are the same as on one
machine. Each node needs fmnist-search installed for Ray's Python, the data set, and
access to the database and the artifacts; nothing is uploaded. The ticket of a node
that died is taken back after its grace by a worker that finds no other.
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
from search.run.local import TICK, WorkersDied, kept_for_later
from search.study.store import load_study, request_stop, stop_requests
from search.worker.loop import WorkerSettings, is_over, work

CONNECT = 5.0  # seconds within which the head of the cluster must accept a connection
RESTARTS = 100  # of a worker whose process or node dies, and of one that ends while work is left
CANCEL = 10.0  # seconds within which Ray must have ended the workers that it was told to kill
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_NUM_REDIS_GET_RETRIES": "2"}  # of 20 tries, 40 s each, at a wrong port


log = logging.getLogger(__package__)


class ClusterError(ExpectedError):
    """The Ray cluster cannot be used; the message says what to do."""


def drain(
    study: optuna.Study,
    settings: list[WorkerSettings],
    address: str,
    stopping: Callable[[], bool],
    on_tick: Callable[[], None],
) -> None:
    """Run one worker for each of `settings` on the cluster, started again if it ends, until no work is left.

    Once `stopping` says so, all workers of the study are asked to finish their epoch, to
    give their tickets back and to end. Whatever ends this function, no worker outlives
    it; the tickets of workers that had to be killed on other machines stay held for
    their grace. Workers that the cluster has no room for wait for it.

    Args:
        address: HOST:PORT of the cluster's head, or "auto" for the one that this machine belongs to.
        on_tick: called every second or so.

    Raises:
        ClusterError: Ray is not installed, or there is no cluster.
        WorkersDied: the workers cannot go on.
        TooManyFailures: failing is the rule among the trials.
    """
    failure: ExpectedError | None = None
    asked = False
    request = retry(lambda: stop_requests(study), stopping)
    with _connected(address) as ray:
        workers = {_start(ray, each, request): each for each in settings}
        log.info("%d workers wait for room on the cluster; what they log is in Ray's own log files", len(workers))
        left = RESTARTS * len(settings)
        try:
            while workers:
                ended, _ = ray.wait(list(workers), timeout=TICK)
                if not asked and (failure or stopping()):
                    retry(lambda: request_stop(study), stopping)
                    _cancel(ray, workers)
                    asked = True
                try:
                    for worker in ended:
                        its = workers.pop(worker)
                        _check(ray, worker, asked)
                        if asked or failure or retry(lambda: is_over(study, its), stopping):  # noqa: B023
                            continue
                        log.warning("a worker on Ray ended while trials are left: another is started")
                        left -= 1
                        if left < 0:
                            raise WorkersDied(f"workers on Ray ended {RESTARTS} times each while trials were left")
                        # If it was a request to stop that ended it, `stopping` is about to say so.
                        now = retry(lambda: stop_requests(study), stopping)
                        workers[_start(ray, its, now)] = its
                    retry(lambda: check_failures(study), stopping)
                except (WorkersDied, TooManyFailures) as error:
                    failure = failure or error
                retry(on_tick, stopping)
        finally:
            _cancel(ray, workers, force=True)
            ray.wait(list(workers), num_returns=len(workers), timeout=CANCEL)
            with kept_for_later():
                release(study)
    if failure:
        raise failure


def _start(ray: Any, settings: WorkerSettings, request: str | None) -> Any:
    """A worker as a task of Ray, in a process of its own, which is started again wherever it may die."""
    share = {"num_cpus": settings.threads, "num_gpus": int(settings.device == "cuda")}
    return ray.remote(**share, max_retries=RESTARTS, max_calls=1)(_work).remote(_anywhere(settings), request)


def _work(settings: WorkerSettings, request: str | None) -> str | None:
    """Be a worker on a node of the cluster, in the main thread of a process of Ray's.

    Args:
        request: the last request to stop before the search began. A worker that starts
            late, or again, heeds those that came since.

    Returns:
        What the user has to mend, if that ended it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # by it Ray cancels a task; see `_cancel`
    try:
        with reported(settings.storage):
            logs.configure(settings.log_level)
            study = retry(lambda: load_study(open_storage(settings.storage), settings.study))
            with logs.about(study=settings.study, worker=this_worker()):
                work(settings, lambda: _asked(study, request))
    except (ExpectedError, OSError) as error:
        first, *difference = str(error).splitlines()
        return "\n".join([f"{first} (on {socket.gethostname()})", *difference])
    return None


def _asked(study: optuna.Study, request: str | None) -> bool:
    try:
        return stop_requests(study) != request
    except (SQLAlchemyError, StorageInternalError):
        return False  # that trouble is the worker's to bear with


def _anywhere(settings: WorkerSettings) -> WorkerSettings:
    """The settings as they mean the same in the working directory and environment of any process here."""
    data_dir = settings.data_dir or os.environ.get("FMNIST_DATA")
    return replace(
        settings,
        storage=absolute(settings.storage).render_as_string(hide_password=False),
        data_dir=expand(data_dir).resolve() if data_dir else None,
        output=settings.output and settings.output.resolve(),
    )


def _cancel(ray: Any, workers: Iterable[Any], *, force: bool = False) -> None:
    """Cancel workers that have not begun, for want of room; those that have only by `force`."""
    for worker in workers:
        ray.cancel(worker, force=force)


def _check(ray: Any, worker: Any, cancelled: bool) -> None:
    """See how a worker ended.

    Raises:
        WorkersDied: it met what others would meet too.
    """
    try:
        trouble = ray.get(worker)
    except ray.exceptions.RayError as error:
        if cancelled and isinstance(error, ray.exceptions.TaskCancelledError):
            return
        raise WorkersDied(_reason(getattr(error, "cause", None) or error)) from error
    if trouble:
        raise WorkersDied(trouble)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Be a driver of the cluster; Ray is as quiet as it can be made, and leaves our signals to us.

    Raises:
        ClusterError: Ray is not installed, or there is no cluster that lets us in.
    """
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
        _knock(address)
        ray._private.worker._worker_logs_enabled = False  # log_to_driver is not asked about its words on dead nodes
        # Else Ray puts our working directory first on the path from which workers import; it does not for its client's.
        job = ray.job_config.JobConfig(_client_job=True)
        ray.init(address=address, job_config=job, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"no usable Ray cluster at {address}: {_in_one_line(error)}. Start one with `ray start --head`, or name "
            "one of the same versions of Ray and Python with --address HOST:PORT (RAY_AUTH_MODE=token if it wants that)"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See that something listens at the address; Ray itself would try for minutes, and start a cluster at "local".

    Raises:
        OSError, ValueError: nothing does, or it is no address.
    """
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(os.environ.get("RAY_ADDRESS") or address if address == "auto" else address)
    if found is None or "://" in found:
        raise ValueError("give HOST:PORT of its head, from a machine that belongs to it")
    host, port = found.rsplit(":", 1)
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()


def _reason(error: BaseException) -> str:
    """Why a worker ended that did not say so itself."""
    if "failed to import on the worker" in str(error):  # Ray's words, followed by a traceback
        last = str(error).strip().splitlines()[-1]
        return f"a node of the Ray cluster has no fmnist-search ({last}): install it there, for the Python of Ray"
    return f"a worker on Ray ended with {type(error).__name__}: {_in_one_line(error)}"


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
