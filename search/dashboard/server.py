"""optuna-dashboard over the studies' database, for those who may see it."""

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
    ByMethod,
    Credentials,
    KnownHosts,
    SafeAnswers,
    SignIn,
    SoundRequests,
    keeping_names,
    own_origin,
    read_only,
    refuse,
)
from search.dashboard.prefix import Prefixed
from search.database.connection import Mode, open_storage
from search.database.retry import reported
from search.database.url import parse

# Whole numbers in a path: of a study and one of its trials, or of a trial.
IDS = re.compile(r"/(?:api/)?(studies|artifacts|csv|trials)/(\d+)(?:/(\d+))?(?=/|$)")
LARGEST_ID, LONGEST_ID = 2**31 - 1, 10  # as the columns are, and digits of it
LARGEST, LARGEST_READING = 32 * 2**20, 2**16  # bytes of a request: it is read before anybody is asked who he is


class DashboardError(ExpectedError):
    """The dashboard cannot be served; the message says what to do."""


@dataclass(frozen=True)
class DashboardSettings:
    """What is served, where, and to whom.

    folder: says where a study's files are. uploads: the folder of what people upload. host, port: to listen on.
    credentials: of the one user who may sign in; without them whoever reaches it is let in, and other machines only
    reach it if that is meant to be `insecure`. read_only: nobody changes anything. prefix: of all paths, such as
    /tuning. behind_proxy: a proxy serves it to other machines, and says who asks.
    """

    storage: str = field(repr=False)  # it may hold a password
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
        UsageError: other machines would reach it without a sign-in.
        DashboardError: it cannot listen there.
        StorageError: the database cannot be opened.
    """
    family, address = _resolved(settings.host, settings.port)
    local = ipaddress.ip_address(address[0].partition("%")[0]).is_loopback and not settings.behind_proxy
    if not (local or settings.credentials or settings.insecure):
        option = "--behind-proxy" if settings.behind_proxy else f"--host {settings.host}"
        raise UsageError(
            f"{option}: other machines would reach the dashboard; let users sign in with --auth USER, "
            "or let anybody read and change the studies with --insecure"
        )
    application = _application(settings, local)
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            mend = "one of this machine with --host" if error.errno == errno.EADDRNOTAVAIL else "another with --port"
            reason = f"port {settings.port} cannot be opened on {address[0]} ({error.strerror})"
            raise DashboardError(f"{reason}; choose {mend}") from error
        logging.getLogger("optuna_dashboard._bottle_util").addFilter(_shorten)
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
        with suppress(KeyboardInterrupt):  # which the server knows to end by, once it runs
            ready(f"http://{host}:{settings.port}{settings.prefix}/")
            server.run()


def _shorten(record: logging.LogRecord) -> bool:
    """Leave the traceback out of what the dashboard logs of a request that it could not answer."""
    record.msg, record.args = record.getMessage().partition("\n")[0], None
    return True


def _application(settings: DashboardSettings, local: bool) -> WSGIApplication:
    """The dashboard and what stands before it.

    What reads has a storage of its own, which waits for no writer, and for which no writer waits. A server's database
    may be empty: a service is there before its first study.
    """
    mode: Mode = "write" if parse(settings.storage).drivername == "sqlite" else "create"
    changing: WSGIApplication = (
        read_only if settings.read_only else SoundRequests(keeping_names(_dashboard(settings, mode)))
    )
    application: WSGIApplication = SafeAnswers(ByMethod(_dashboard(settings, "read"), own_origin(changing)))
    if settings.prefix:
        application = Prefixed(application, settings.prefix)
    if settings.credentials:
        return SignIn(application, settings.credentials)
    return KnownHosts(application, settings.host) if local else application


def _dashboard(settings: DashboardSettings, mode: Mode) -> WSGIApplication:
    """optuna-dashboard itself, which is asked nothing while its database is out of reach."""
    storage = open_storage(settings.storage, mode)
    application = optuna_dashboard.wsgi(storage, TrialArtifacts(storage, settings.folder, settings.uploads))
    application.catchall = False  # an error is for those to answer who know what it means

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # of its API's errors the dashboard itself says nothing but "internal server error", and logs a traceback
        with reported(settings.storage), storage.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        if not _is_known(storage, environ["PATH_INFO"]):
            return refuse(start_response, "404 Not Found", "There is no such study or trial.")
        return application(environ, start_response)  # type: ignore[no-any-return]

    return checked


def _is_known(storage: RDBStorage, path: str) -> bool:
    """Whether the study and the trial that a path names are in the database; the dashboard would not say."""
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


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """What a host's name means on this machine, as a socket takes it: the address first.

    Raises:
        DashboardError: it means nothing.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise DashboardError(f"--host {host}: {error.strerror}; choose an address of this machine") from error
    return family, address
