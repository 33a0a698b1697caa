"""The dashboard below a URL path, such as /tuning, on a site that a proxy shares among services.

optuna-dashboard has no setting for this: its page and its script contain absolute paths (/static, /api, /artifacts,
/csv, and /dashboard in its router). They are served with these paths rewritten; a version in which one is missing is
refused.
"""

import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard

from fmnist.errors import ExpectedError, UsageError

SCRIPT, PAGE = "/static/bundle.js", "index.html"
# The paths in each file; the bar marks where the prefix is inserted.
PATHS = {
    PAGE: ['src="|/static/'],
    SCRIPT: ["${this.baseURL}|/api/", "`|/artifacts/", "`${e}|/artifacts/", "`|/csv/", 'url_prefix:"|/dashboard"'],
}


class PrefixError(ExpectedError):
    """The installed optuna-dashboard cannot be served below a prefix."""


def check_prefix(prefix: str) -> str:
    """A prefix without trailing slash.

    Raises:
        UsageError: it is not a URL path.
    """
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", prefix) or {".", ".."} & set(prefix.split("/")):
        raise UsageError(f"--prefix {prefix}: is not a URL path; write one like /tuning")
    return prefix.rstrip("/")


class Prefixed:
    """Serves the page and its script with rewritten paths, and everything else from the application.

    Raises:
        PrefixError: a path was not found in them.
    """

    def __init__(self, application: WSGIApplication, prefix: str) -> None:
        self.application, self.prefix = application, prefix
        folder = Path(str(optuna_dashboard.__file__)).parent
        self.page = _rewritten((folder / PAGE).read_text(encoding="utf-8"), PAGE, prefix)
        self.script = gzip.compress(_rewritten((folder / "public" / "bundle.js").read_text("utf-8"), SCRIPT, prefix))

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
        statuses: list[str] = []

        # The application is asked too, for its status and headers such as its content security policy.
        def start(status: str, headers: list[tuple[str, str]], *_: object) -> object:
            statuses.append(status)
            if not status.startswith("200"):
                return start_response(status, headers)
            replaced = {"content-length", "content-encoding", "last-modified", "etag", "accept-ranges"}
            headers = [each for each in headers if each[0].lower() not in replaced]
            return start_response(status, [*headers, ("Content-Length", str(len(self.page)))])

        environ.pop("HTTP_IF_MODIFIED_SINCE", None)
        body = self.application(environ, start)  # type: ignore[arg-type]
        if not statuses[0].startswith("200"):
            return body
        if hasattr(body, "close"):
            body.close()
        return [self.page]


def _rewritten(text: str, name: str, prefix: str) -> bytes:
    for known in PATHS[name]:
        before, path = known.split("|")
        if before + path not in text:
            raise PrefixError(
                f"optuna-dashboard {optuna_dashboard.__version__} cannot be served below a prefix; "
                "use a separate host name, or install the version in constraints.txt"
            )
        text = text.replace(before + path, before + prefix + path)
    return text.encode()


def _script(start_response: StartResponse, body: bytes, *, packed: bool) -> Iterable[bytes]:
    headers = [("Content-Type", "text/javascript; charset=utf-8"), ("Content-Length", str(len(body)))]
    headers += [("Vary", "Accept-Encoding"), *([("Content-Encoding", "gzip")] if packed else [])]
    start_response("200 OK", headers)
    return [body]
