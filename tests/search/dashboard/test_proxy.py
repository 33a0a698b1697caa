"""The dashboard below a URL path, behind a real nginx."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fmnist.errors import UsageError
from search.dashboard import prefix
from search.dashboard.prefix import Prefixed, PrefixError, check_prefix
from tests.conftest import NEEDS_CHROMIUM
from tests.postgresql import free_port
from tests.search.dashboard.serving import SECRET, USER, Site, basic, refused, serving

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx not found: apt-get install nginx-light")


@contextmanager
def nginx(folder: Path, dashboard: int) -> Iterator[int]:
    """Run nginx with the configuration in docs/dashboard.md; yields its port."""
    location = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "dashboard.md").read_text(), re.DOTALL)
    assert location
    port = free_port()
    inner = location[1].replace("127.0.0.1:8080", f"127.0.0.1:{dashboard}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/errors;"
        f"events {{}} http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port}; {inner} }} }}"
    )
    call = [str(NGINX), "-p", str(folder), "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / "pid").is_file():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def proxied(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The dashboard behind the proxy."""
    arguments = ("--prefix", "/tuning", "--behind-proxy", "--auth", USER)
    with serving(searched, *arguments, FMNIST_SEARCH_PASSWORD=SECRET) as served:
        behind = urlsplit(served.address).port
        assert behind
        with nginx(tmp_path_factory.mktemp("nginx"), behind) as port:
            yield Site(searched, f"http://127.0.0.1:{port}", served.process)


def test_everything_a_page_needs_is_below_the_prefix(proxied: Site) -> None:
    def ask(path: str, **headers: str) -> Any:
        return proxied.ask(path, Authorization=basic(USER, SECRET), **headers)

    assert proxied.ask("/tuning/api/studies").status == 401
    assert all(ask(path).status in (403, 404) for path in ("/", "/api/studies"))  # nginx's own
    page = ask("/tuning/dashboard/studies/1")
    assert (page.status, b'src="/tuning/static/bundle.js"' in page.body) == (200, True)
    assert page.headers["Content-Security-Policy"]
    script = ask("/tuning/static/bundle.js")
    assert script.status == 200
    packed = ask("/tuning/static/bundle.js", **{"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.body) < len(script.body) / 2
    study = ask("/tuning/api/studies/1").json()
    best = max(study["trials"][:12], key=lambda each: each["values"][0])
    for artifact in best["artifacts"]:
        assert ask(f"/tuning/artifacts/1/{best['trial_id']}/{artifact['artifact_id']}").status == 200
    assert ask("/tuning/csv/1").status == 200


def test_the_prefix_redirects_to_the_dashboard(proxied: Site) -> None:
    port = urlsplit(proxied.address).port
    for path in ("/tuning", "/tuning/"):
        connection = HTTPConnection("127.0.0.1", port, timeout=50)
        connection.request("GET", path, headers={"Authorization": basic(USER, SECRET)})
        answer = connection.getresponse()
        connection.close()
        assert answer.status in (301, 302)
        assert urlsplit(answer.headers["Location"]).path in ("/tuning/", "/tuning/dashboard")


def test_client_address_and_scheme_come_from_the_proxys_headers(proxied: Site) -> None:
    note = {"body": "boots", "version": 99}
    for origin, status in (("https://evil.example", 403), (proxied.address.replace("http", "https"), 409)):
        headers = {"Authorization": basic(USER, SECRET), "Origin": origin}
        assert proxied.ask("/tuning/api/studies/1/note", "PUT", note, **headers).status == status
    for _ in range(4):
        answer = proxied.ask("/tuning/api/meta", Authorization=basic(USER, "wrong"))
    assert (answer.status, answer.body.startswith(b"Too many wrong passwords from 127.0.0.1;")) == (429, True)
    assert proxied.ask("/tuning/api/meta", Authorization=basic(USER, SECRET)).status == 200  # signed in before


@pytest.mark.parametrize(("options", "scheme"), [(("--behind-proxy",), "https"), ((), "http")])
def test_a_redirect_has_the_scheme_of_a_trusted_proxy(searched: Path, options: tuple[str, ...], scheme: str) -> None:
    with serving(searched, *options, "--insecure") as served:
        port = urlsplit(served.address).port
        answer = served.ask("/", Host=f"127.0.0.1:{port}", **{"X-Forwarded-Proto": "https"})
        assert answer.headers["Location"] == f"{scheme}://127.0.0.1:{port}/dashboard"


@NEEDS_CHROMIUM
def test_a_browser_navigates_below_the_prefix(proxied: Site, browser: Any) -> None:
    context = browser.new_context(http_credentials={"username": USER, "password": SECRET})
    failed: list[str] = []
    page = context.new_page()
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.goto(f"{proxied.address}/tuning/")
    page.get_by_text("shown").first.click()
    page.wait_for_url("**/tuning/dashboard/studies/1**")
    page.goto(f"{proxied.address}/tuning/dashboard/studies/1/trials")
    page.locator("img[src^='/tuning/artifacts/']").first.wait_for()
    page.wait_for_load_state("networkidle")
    context.close()
    assert [url for url in failed if not url.endswith("/favicon.ico")] == []


def test_an_incompatible_dashboard_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prefix.PATHS, prefix.SCRIPT, ["something|/else"])
    with pytest.raises(PrefixError, match="cannot be served below a prefix; use a separate host name"):
        Prefixed(lambda *_: [], "/tuning")


@pytest.mark.parametrize("path", ["tuning", "/", "//", "/a b", "/a/../b", "/a?b", "/<script>"])
def test_an_invalid_prefix_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="write one like /tuning"):
        check_prefix(path)


def test_behind_a_proxy_a_sign_in_is_required(searched: Path) -> None:
    code, line = refused(searched, "--behind-proxy")
    assert code == 2
    assert "--behind-proxy: other machines could reach the dashboard; require a sign-in with --auth USER" in line
