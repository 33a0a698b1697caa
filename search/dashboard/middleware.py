"""What stands between a browser and the dashboard: sign-in, and what is refused. Each wraps a WSGI application.

optuna-dashboard has no sign-in of its own. What is here asks before it sees any request, be it for a page, its API, a
static file or an artifact.
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

# Methods that change nothing (RFC 9110, 9.2.1), and in the dashboard they do not.
READING = frozenset({"GET", "HEAD", "OPTIONS"})
WORK = 2**12  # scrypt's: it is done again for each request, in about 10 ms
HARMLESS = [("Content-Security-Policy", "sandbox"), ("X-Content-Type-Options", "nosniff")]
FREE_TRIES = 3  # wrong passwords before the first delay
LONGEST_DELAY, FORGOTTEN = 60.0, 600.0  # seconds: between two tries, and after which the count begins anew
MOST_ADDRESSES = 10_000  # that are remembered
LOCAL = ("localhost", "127.0.0.1", "[::1]")


log = logging.getLogger(__package__)


class Credentials:
    """The name and password of a user, kept as a salted hash alone (scrypt, RFC 7914).

    Raises:
        UsageError: HTTP has no way to say such a name.
    """

    def __init__(self, user: str, password: str) -> None:
        if not user or ":" in user:
            raise UsageError(f"--auth {user!r} cannot name a user; give a name without a colon")
        self._salt = secrets.token_bytes(16)
        self._hash = self._hashed(f"{user}:{password}".encode(errors="surrogateescape"))

    def match(self, given: bytes) -> bool:
        """Whether USER:PASSWORD is right; how long it takes does not tell how nearly."""
        return hmac.compare_digest(self._hashed(given), self._hash)

    def _hashed(self, both: bytes) -> bytes:
        digest = hashlib.sha256(both).digest()  # scrypt takes "secret" and "secret\0" for the same
        return hashlib.scrypt(digest, salt=self._salt, n=WORK, r=8, p=1)


class SignIn:
    """HTTP Basic authentication (RFC 7617) for every request.

    After several wrong passwords an address must wait before its next attempt, twice as long each time. Users who have
    signed in are not affected: credentials that were accepted once are recognized by their hash.
    """

    def __init__(self, application: WSGIApplication, credentials: Credentials) -> None:
        self.application, self.credentials = application, credentials
        self.wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # by address: how often, when the next may be
        self.right: bytes | None = None  # hash of what was right
        self.lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given, address = _given(environ.get("HTTP_AUTHORIZATION", "")), client_of(environ.get("REMOTE_ADDR", ""))
        if given is not None:
            hashed = hashlib.sha256(given).digest()
            if self.right is not None and hmac.compare_digest(hashed, self.right):
                return self.application(environ, start_response)
            left = self._left(address)
            if left > 0:
                wait = ("Retry-After", str(math.ceil(left)))
                why = f"Too many wrong passwords from {address}; try again in {math.ceil(left)} s."
                return refuse(start_response, "429 Too Many Requests", why, wait)
            if self.credentials.match(given):
                self.right = hashed
                return self.application(environ, start_response)
            self._count(address)
        ask = ("WWW-Authenticate", 'Basic realm="fmnist-search", charset="UTF-8"')
        return refuse(start_response, "401 Unauthorized", "Sign in with the user and password of this dashboard.", ask)

    def _left(self, address: str) -> float:
        """Seconds before that address may try again."""
        with self.lock:
            return self.wrong.get(address, (0, 0.0))[1] - time.monotonic()

    def _count(self, address: str) -> None:
        with self.lock:
            times, until = self.wrong.pop(address, (0, 0.0))
            times = 1 if time.monotonic() - until > FORGOTTEN else times + 1
            delay = min(2.0 ** (times - FREE_TRIES), LONGEST_DELAY) if times >= FREE_TRIES else 0.0
            self.wrong[address] = times, time.monotonic() + delay
            if len(self.wrong) > MOST_ADDRESSES:
                self.wrong.popitem(last=False)
        log.warning(
            "sign-in from %s failed, %d times by now; the next in %.0f s at the earliest", address, times, delay
        )


class KnownHosts:
    """Refuses what is asked of a host of another name than this machine's.

    A page from elsewhere may let its own name point here, and a browser then takes the dashboard for a part of it
    (DNS rebinding).
    """

    def __init__(self, application: WSGIApplication, host: str) -> None:
        self.application = application
        self.names = {*LOCAL, host.lower()}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if re.sub(r":\d+$", "", environ.get("HTTP_HOST", "")).lower() in self.names:
            return self.application(environ, start_response)
        why = f"This dashboard is to be asked for as {', '.join(sorted(self.names))}; others need it to have a sign-in."
        return refuse(start_response, "403 Forbidden", why)


class SoundRequests:
    """Rejects malformed requests, for which the dashboard would log a traceback or leave a file behind."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(content)
        if content and environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
            return refuse(start_response, "415 Unsupported Media Type", "Changes are made with application/json.")
        try:
            body = json.loads(content or b"{}")
        except (ValueError, RecursionError):  # of the text, its encoding and its depth
            body = None
        upload = environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"].startswith("/api/artifacts/")
        if not isinstance(body, dict) or (upload and not _is_upload(body)):
            return refuse(start_response, "400 Bad Request", "The content of the request is malformed.")

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
            # its database was asked just before: what fails is the request, or the disk that an upload goes to
            of_request = status.startswith("500") and not upload
            return start_response("400 Bad Request" if of_request else status, headers, *rest)

        return self.application(environ, start)


def _is_upload(body: dict[str, Any]) -> bool:
    """Whether the body contains a file as a data URL, and a valid name."""
    file, name = body.get("file"), body.get("filename", "")
    if not isinstance(file, str) or not isinstance(name, str) or not re.match(r"data:[^,]*;base64,", file):
        return False
    try:
        base64.b64decode(file.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def own_origin(application: WSGIApplication) -> WSGIApplication:
    """Rejects requests from pages of another origin. Browsers send the header (RFC 6454); others need not."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.partition("://")[2].lower() != environ.get("HTTP_HOST", "").lower():
            return refuse(start_response, "403 Forbidden", "A page of another origin may change nothing here.")
        return application(environ, start_response)

    return checked


class ByMethod:
    """Lets one application answer whatever reads, and another whatever changes something."""

    def __init__(self, reading: WSGIApplication, changing: WSGIApplication) -> None:
        self.reading, self.changing = reading, changing

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        application = self.reading if environ["REQUEST_METHOD"] in READING else self.changing
        return application(environ, start_response)


class SafeAnswers:
    """Says errors in one line, and keeps what somebody uploaded from running scripts in the dashboard's name."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # else the dashboard compresses for curl, which did not ask
        try:
            if environ["PATH_INFO"].startswith("/artifacts/"):
                return self._artifact(environ, start_response)
            return self.application(environ, start_response)
        except ArtifactNotFound as error:
            return refuse(start_response, "404 Not Found", str(error))
        except ExpectedError as error:
            return refuse(start_response, "502 Bad Gateway", str(error))

    def _artifact(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """An artifact, which is no page of the dashboard's whatever it holds, nor for pages of other sites to read."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
            kept = [header for header in headers if header[0] != "Access-Control-Allow-Origin"]
            return start_response(status, [*kept, *HARMLESS], *rest)

        try:
            return self.application(environ, start)
        except KeyError:  # Optuna's, of a study or trial
            return refuse(start_response, "404 Not Found", "There is no such study or trial.")


def keeping_names(application: WSGIApplication) -> WSGIApplication:
    """Refuses to rename studies: their folders, their finalists and their workers know them by name."""

    def kept(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if re.fullmatch(r"/api/studies/\d+/rename", environ["PATH_INFO"]):
            why = "A study's files and workers go by its name; start one of another name with `run --name`."
            return refuse(start_response, "403 Forbidden", why)
        return application(environ, start_response)

    return kept


def read_only(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An application that refuses everything: it stands for the changes that nobody may make."""
    return refuse(start_response, "403 Forbidden", "This dashboard is read-only.")


def refuse(start_response: StartResponse, status: str, why: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    """Answer with a status and one line of text."""
    body = f"{why}\n".encode()
    kind = ("Content-Type", "text/plain; charset=utf-8")
    start_response(status, [kind, ("Content-Length", str(len(body))), *headers])
    return [body]


def client_of(address: str) -> str:
    """The key by which clients are counted: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def _given(authorization: str) -> bytes | None:
    """USER:PASSWORD of the header of that name; None if there are none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
