"""Serves optuna-dashboard for the studies' database, with access control."""

import errno
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna
import optuna_dashboard
from optuna.storages import RDBStorage

from fmnist.errors import ExpectedError, UsageError
from search.dashboard.artifacts import TrialArtifacts
from search.dashboard.connections import BoundedServer
from search.dashboard.middleware import (
    AllowedHosts,
    ByMethod,
    Credentials,
    SafeResponses,
    SignIn,
    ValidRequests,
    read_only,
    refuse,
    same_origin,
    without_rename,
)
from search.dashboard.prefix import Prefixed
from search.database.connection import Mode, open_storage
from search.database.retry import reported
from search.database.url import parse

# Ids in a path: of a study and one of its trials, or of a trial.
IDS = re.compile(r"/(?:api/)?(studies|artifacts|csv|trials)/(\d+)(?:/(\d+))?(?=/|$)")
LARGEST_ID, LONGEST_ID = 2**31 - 1, 10  # of the database's integer columns; its digits
LARGEST, LARGEST_READING = 32 * 2**20, 2**16  # bytes of a request: it is read before the sign-in


class DashboardError(ExpectedError):
    """The dashboard cannot be served."""


@dataclass(frozen=True)
class DashboardSettings:
    """What is served, where, and to whom.

    folder: returns the folder of a study. uploads: folder of uploaded files. host, port: to listen on.
    credentials: of the only user; None lets everybody in, and is refused for other machines unless `insecure`.
    read_only: refuse all changes. prefix: of URL paths, such as /tuning. behind_proxy: a proxy serves it to other
    machines; trust its headers.
    """

    storage: str = field(repr=False)  # may contain a password
    folder: Callable[[optuna.Study], Path]
    uploads: Path
    host: str
    port: int
    credentials: Credentials | None = None
    insecure: bool = False
    read_only: bool = False
    prefix: str = ""
    behind_proxy: bool = False


def serve(settings: DashboardSettings, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        ready: called with the page's address once the port is open.

    Raises:
        UsageError: other machines could reach it without a sign-in.
        DashboardError: the port cannot be opened on the host.
        StorageError: the database cannot be opened.
    """
    family, address = _resolve(settings.host, settings.port)
    local = ipaddress.ip_address(address[0].partition("%")[0]).is_loopback and not settings.behind_proxy
    if not (local or settings.credentials or settings.insecure):
        option = "--behind-proxy" if settings.behind_proxy else f"--host {settings.host}"
        raise UsageError(
            f"{option}: other machines could reach the dashboard; require a sign-in with --auth USER, "
            "or let anybody read and change the studies with --insecure"
        )
    application = _application(settings, local)
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            no_such_address = error.errno == errno.EADDRNOTAVAIL
            fix = "an address of this machine with --host" if no_such_address else "another with --port"
            reason = f"port {settings.port} cannot be opened on {address[0]} ({error.strerror})"
            raise DashboardError(f"{reason}; choose {fix}") from error
        logging.getLogger("optuna_dashboard._bottle_util").addFilter(_drop_traceback)
        largest = LARGEST_READING if settings.read_only else LARGEST
        server = BoundedServer(
            application,
            listener,
            threads=4,
            largest=largest,
            prefix=settings.prefix,
            behind_proxy=settings.behind_proxy,
        )
        host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        with suppress(KeyboardInterrupt):  # of a Ctrl-C before the server runs, which handles it itself
            ready(f"http://{host}:{settings.port}{settings.prefix}/")
            server.run()


def _drop_traceback(record: logging.LogRecord) -> bool:
    """A logging filter that drops the traceback from what optuna-dashboard logs about failed requests."""
    record.msg, record.args = record.getMessage().partition("\n")[0], None
    return True


def _application(settings: DashboardSettings, local: bool) -> WSGIApplication:
    # Reading requests have a storage of their own, so that they neither wait for writers nor block them.
    # A server's database may still be empty: the service may start before its first study.
    mode: Mode = "write" if parse(settings.storage).drivername == "sqlite" else "create"
    changing: WSGIApplication = (
        read_only if settings.read_only else ValidRequests(without_rename(_dashboard(settings, mode)))
    )
    application: WSGIApplication = SafeResponses(ByMethod(_dashboard(settings, "read"), same_origin(changing)))
    if settings.prefix:
        application = Prefixed(application, settings.prefix)
    if settings.credentials:
        return SignIn(application, settings.credentials)
    return AllowedHosts(application, settings.host) if local else application


def _dashboard(settings: DashboardSettings, mode: Mode) -> WSGIApplication:
    """optuna-dashboard, guarded against an unreachable database and unknown ids."""
    storage = open_storage(settings.storage, mode)
    application = optuna_dashboard.wsgi(storage, TrialArtifacts(storage, settings.folder, settings.uploads))
    application.catchall = False  # let exceptions reach SafeResponses

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # optuna-dashboard would answer "internal server error" and log a traceback.
        with reported(settings.storage), storage.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        if not _exists(storage, environ["PATH_INFO"]):
            return refuse(start_response, "404 Not Found", "No such study or trial.")
        return application(environ, start_response)  # type: ignore[no-any-return]

    return checked


def _exists(storage: RDBStorage, path: str) -> bool:
    """Whether the study and the trial in a path exist; optuna-dashboard does not check."""
    match = IDS.match(path)
    if match is None:
        return True
    ids = match.groups()[1:]
    if any(each and (len(each) > LONGEST_ID or int(each) > LARGEST_ID) for each in ids):
        return False
    first, second = (int(each) if each else None for each in ids)
    study, trial = (None, first) if match[1] == "trials" else (first, second)
    try:
        if study is not None:
            storage.get_study_name_from_id(study)
        if trial is not None:
            storage.get_trial(trial)
    except KeyError:
        return False
    return True


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """A host's socket family and address.

    Raises:
        DashboardError: the host is unknown.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise DashboardError(f"--host {host}: {error.strerror}; choose an address of this machine") from error
    return family, address
