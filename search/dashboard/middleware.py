"""WSGI middleware in front of optuna-dashboard: sign-in and request checks.

optuna-dashboard has no sign-in. This middleware checks every request first: pages, API, static files and artifacts.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna.artifacts.exceptions import ArtifactNotFound

from fmnist.errors import ExpectedError, UsageError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110, 9.2.1; in optuna-dashboard they change nothing
WORK = 2**12  # scrypt's cost: about 10 ms per hash
SANDBOX = [("Content-Security-Policy", "sandbox"), ("X-Content-Type-Options", "nosniff")]
FREE_ATTEMPTS = 3  # wrong passwords until the first delay
LONGEST_DELAY, RESET_AFTER = 60.0, 600.0  # seconds: between two attempts, and after which the count starts again
MOST_ADDRESSES = 10_000  # for which wrong passwords are counted
LOCAL = ("localhost", "127.0.0.1", "[::1]")


log = logging.getLogger(__package__)


class Credentials:
    """The name and password of a user, kept only as a salted hash (scrypt, RFC 7914).

    Raises:
        UsageError: the name is empty or contains a colon, which HTTP Basic authentication does not allow.
    """

    def __init__(self, user: str, password: str) -> None:
        if not user or ":" in user:
            raise UsageError(f"--auth {user!r} is not a valid user name; use one without a colon")
        self._salt = secrets.token_bytes(16)
        self._hash = self._hashed(f"{user}:{password}".encode(errors="surrogateescape"))

    def match(self, given: bytes) -> bool:
        """Whether USER:PASSWORD is correct, compared in constant time."""
        return hmac.compare_digest(self._hashed(given), self._hash)

    def _hashed(self, both: bytes) -> bytes:
        digest = hashlib.sha256(both).digest()  # scrypt alone gives "secret" and "secret\0" the same hash
        return hashlib.scrypt(digest, salt=self._salt, n=WORK, r=8, p=1)


class SignIn:
    """HTTP Basic authentication (RFC 7617) for every request.

    After FREE_ATTEMPTS wrong passwords, an address must wait before its next attempt, twice as long each time.
    Credentials that were accepted before skip the wait.
    """

    def __init__(self, application: WSGIApplication, credentials: Credentials) -> None:
        self.application, self.credentials = application, credentials
        self.failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address: (failures, time of next attempt)
        self.accepted: bytes | None = None  # hash of the credentials last accepted
        self.lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = _basic_credentials(environ.get("HTTP_AUTHORIZATION", ""))
        address = client_of(environ.get("REMOTE_ADDR", ""))
        if given is not None:
            hashed = hashlib.sha256(given).digest()
            if self.accepted is not None and hmac.compare_digest(hashed, self.accepted):
                return self.application(environ, start_response)
            delay = self._remaining_delay(address)
            if delay > 0:
                wait = ("Retry-After", str(math.ceil(delay)))
                why = f"Too many wrong passwords from {address}; try again in {math.ceil(delay)} s."
                return refuse(start_response, "429 Too Many Requests", why, wait)
            if self.credentials.match(given):
                self.accepted = hashed
                return self.application(environ, start_response)
            self._record_failure(address)
        ask = ("WWW-Authenticate", 'Basic realm="fmnist-search", charset="UTF-8"')
        return refuse(start_response, "401 Unauthorized", "Sign in with the user and password of this dashboard.", ask)

    def _remaining_delay(self, address: str) -> float:
        """Seconds until an address may try again."""
        with self.lock:
            return self.failures.get(address, (0, 0.0))[1] - time.monotonic()

    def _record_failure(self, address: str) -> None:
        with self.lock:
            times, until = self.failures.pop(address, (0, 0.0))
            times = 1 if time.monotonic() - until > RESET_AFTER else times + 1
            delay = min(2.0 ** (times - FREE_ATTEMPTS), LONGEST_DELAY) if times >= FREE_ATTEMPTS else 0.0
            self.failures[address] = times, time.monotonic() + delay
            if len(self.failures) > MOST_ADDRESSES:
                self.failures.popitem(last=False)
        log.warning("sign-in from %s failed (%d times); next attempt allowed in %.0f s", address, times, delay)


class AllowedHosts:
    """Refuses requests whose Host header does not name this machine, against DNS rebinding."""

    def __init__(self, application: WSGIApplication, host: str) -> None:
        self.application = application
        self.names = {*LOCAL, host.lower()}
        self.advised = " or ".join(sorted({f"[{host}]" if ":" in host else host, "localhost"}))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if re.sub(r":\d+$", "", environ.get("HTTP_HOST", "")).lower() in self.names:
            return self.application(environ, start_response)
        why = f"Open this dashboard at {self.advised}; to use another host name, start it with --auth."
        return refuse(start_response, "403 Forbidden", why)


class ValidRequests:
    """Rejects malformed requests, for which optuna-dashboard would log a traceback or leave a file behind."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(content)
        if content and environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
            return refuse(start_response, "415 Unsupported Media Type", "Send changes as application/json.")
        try:
            body = json.loads(content or b"{}")
        except (ValueError, RecursionError):  # invalid JSON, invalid encoding, or nested too deeply
            body = None
        upload = environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"].startswith("/api/artifacts/")
        if not isinstance(body, dict) or (upload and not _is_upload(body)):
            return refuse(start_response, "400 Bad Request", "The request body is malformed.")

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
            # The database has just been checked, so a 500 is the request's fault, or that of the disk of an upload.
            is_client_error = status.startswith("500") and not upload
            return start_response("400 Bad Request" if is_client_error else status, headers, *rest)

        return self.application(environ, start)


def _is_upload(body: dict[str, Any]) -> bool:
    file, name = body.get("file"), body.get("filename", "")
    if not isinstance(file, str) or not isinstance(name, str) or not re.match(r"data:[^,]*;base64,", file):
        return False
    try:
        base64.b64decode(file.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def same_origin(application: WSGIApplication) -> WSGIApplication:
    """Refuses requests from pages of another origin (RFC 6454); requests without an Origin header pass."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.partition("://")[2].lower() != environ.get("HTTP_HOST", "").lower():
            return refuse(start_response, "403 Forbidden", "Pages of another origin cannot make changes.")
        return application(environ, start_response)

    return checked


class ByMethod:
    """Routes safe methods to one application and all others to another."""

    def __init__(self, reading: WSGIApplication, changing: WSGIApplication) -> None:
        self.reading, self.changing = reading, changing

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        application = self.reading if environ["REQUEST_METHOD"] in SAFE_METHODS else self.changing
        return application(environ, start_response)


class SafeResponses:
    """Reports errors in one line, and keeps uploaded files from running scripts in the dashboard's origin."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault(
            "HTTP_ACCEPT_ENCODING", ""
        )  # if missing, optuna-dashboard compresses, which curl does not expect
        try:
            if environ["PATH_INFO"].startswith("/artifacts/"):
                return self._artifact(environ, start_response)
            return self.application(environ, start_response)
        except ArtifactNotFound as error:
            return refuse(start_response, "404 Not Found", str(error))
        except ExpectedError as error:
            return refuse(start_response, "502 Bad Gateway", str(error))

    def _artifact(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
            # An artifact may be any file: sandbox it, and let no other site read it.
            kept = [header for header in headers if header[0] != "Access-Control-Allow-Origin"]
            return start_response(status, [*kept, *SANDBOX], *rest)

        try:
            return self.application(environ, start)
        except KeyError:  # raised by Optuna for an unknown study or trial
            return refuse(start_response, "404 Not Found", "No such study or trial.")


def without_rename(application: WSGIApplication) -> WSGIApplication:
    """Refuses to rename studies: folders, finalists and workers refer to them by name."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if re.fullmatch(r"/api/studies/\d+/rename", environ["PATH_INFO"]):
            why = "Files and workers refer to a study by name; start one with another name by `run --name`."
            return refuse(start_response, "403 Forbidden", why)
        return application(environ, start_response)

    return checked


def read_only(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An application that refuses every request; it replaces the one that makes changes."""
    return refuse(start_response, "403 Forbidden", "This dashboard is read-only.")


def refuse(start_response: StartResponse, status: str, why: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    """Respond with a status and one line of text."""
    body = f"{why}\n".encode()
    kind = ("Content-Type", "text/plain; charset=utf-8")
    start_response(status, [kind, ("Content-Length", str(len(body))), *headers])
    return [body]


def client_of(address: str) -> str:
    """The key that identifies a client: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def _basic_credentials(authorization: str) -> bytes | None:
    """USER:PASSWORD from an Authorization header; None if it has none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
