"""The dashboard below a path of a site, such as /tuning, where a proxy has other things beside it.

optuna-dashboard's page and its script hold absolute paths, and it has no setting for another place (its pages ask for
/static, /api, /artifacts and /csv, and its router knows /dashboard). They are therefore served with those paths
changed; a version in which one of them is not found is refused, not served half working.
"""

import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard

from fmnist.errors import ExpectedError, UsageError

SCRIPT, PAGE = "/static/bundle.js", "index.html"
# What each file has, and where the prefix goes into it: after what is before the bar.
PATHS = {
    PAGE: ['src="|/static/'],
    SCRIPT: ["${this.baseURL}|/api/", "`|/artifacts/", "`${e}|/artifacts/", "`|/csv/", 'url_prefix:"|/dashboard"'],
}


class PrefixError(ExpectedError):
    """The dashboard that is installed cannot be served below a prefix."""


def check_prefix(prefix: str) -> str:
    """A prefix without its last slash.

    Raises:
        UsageError: it is no path.
    """
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", prefix) or {".", ".."} & set(prefix.split("/")):
        raise UsageError(f"--prefix {prefix}: is no path; write one like /tuning")
    return prefix.rstrip("/")


class Prefixed:
    """Serves the page and its script with their paths changed; all else is the application's.

    Raises:
        PrefixError: they are not what is known here.
    """

    def __init__(self, application: WSGIApplication, prefix: str) -> None:
        self.application, self.prefix = application, prefix
        folder = Path(str(optuna_dashboard.__file__)).parent
        self.page = _changed((folder / PAGE).read_text(encoding="utf-8"), PAGE, prefix)
        self.script = gzip.compress(_changed((folder / "public" / "bundle.js").read_text("utf-8"), SCRIPT, prefix))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/")
        if path == "":
            start_response("302 Found", [("Location", f"{self.prefix}/dashboard"), ("Content-Length", "0")])
            return [b""]
        if environ["REQUEST_METHOD"] != "GET":
            return self.application(environ, start_response)
        if path == SCRIPT:
            packed = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
            return _script(start_response, self.script if packed else gzip.decompress(self.script), packed=packed)
        if path == "/dashboard" or path.startswith("/dashboard/"):
            return self._page(environ, start_response)
        return self.application(environ, start_response)

    def _page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The page with the status and the headers that the dashboard gives it, such as its policy for content."""
        found: list[str] = []

        def start(status: str, given: list[tuple[str, str]], *_: object) -> object:
            found.append(status)
            if not status.startswith("200"):
                return start_response(status, given)
            replaced = {"content-length", "content-encoding", "last-modified", "etag", "accept-ranges"}
            headers = [each for each in given if each[0].lower() not in replaced]
            return start_response(status, [*headers, ("Content-Length", str(len(self.page)))])

        environ.pop("HTTP_IF_MODIFIED_SINCE", None)
        body = self.application(environ, start)  # type: ignore[arg-type]
        if not found[0].startswith("200"):
            return body
        if hasattr(body, "close"):
            body.close()
        return [self.page]


def _changed(text: str, name: str, prefix: str) -> bytes:
    for known in PATHS[name]:
        before, path = known.split("|")
        if before + path not in text:
            raise PrefixError(
                f"optuna-dashboard {optuna_dashboard.__version__} cannot be served below a prefix; give it a host name "
                "of its own, or install the version of constraints.txt"
            )
        text = text.replace(before + path, before + prefix + path)
    return text.encode()


def _script(start_response: StartResponse, body: bytes, *, packed: bool) -> Iterable[bytes]:
    headers = [("Content-Type", "text/javascript; charset=utf-8"), ("Content-Length", str(len(body)))]
    headers += [("Vary", "Accept-Encoding"), *([("Content-Encoding", "gzip")] if packed else [])]
    start_response("200 OK", headers)
    return [body]
