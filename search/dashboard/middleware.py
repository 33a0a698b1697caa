"""What stands between a browser and the dashboard: sign-in, and what is refused. Each wraps a WSGI application.

optuna-dashboard has no sign-in of its own. What is here asks before it sees any request, be it for a page, its API, a
static file or an artifact.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna.artifacts.exceptions import ArtifactNotFound

from fmnist.errors import ExpectedError, UsageError

# Methods that change nothing (RFC 9110, 9.2.1), and in the dashboard they do not.
READING = frozenset({"GET", "HEAD", "OPTIONS"})
WORK = 2**12  # scrypt's: it is done again for each request, in about 10 ms
HARMLESS = [("Content-Security-Policy", "sandbox"), ("X-Content-Type-Options", "nosniff")]
LOCAL = ("localhost", "127.0.0.1", "[::1]")


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
    """HTTP Basic authentication (RFC 7617), for whatever is asked for."""

    def __init__(self, application: WSGIApplication, credentials: Credentials) -> None:
        self.application, self.credentials = application, credentials

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = _given(environ.get("HTTP_AUTHORIZATION", ""))
        if given is not None and self.credentials.match(given):
            return self.application(environ, start_response)
        ask = ("WWW-Authenticate", 'Basic realm="fmnist-search", charset="UTF-8"')
        return refuse(start_response, "401 Unauthorized", "Sign in with the user and password of this dashboard.", ask)


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


def _given(authorization: str) -> bytes | None:
    """USER:PASSWORD of the header of that name; None if there are none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
