"""Requests to the real dashboard server, and to the stock one."""

import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.util import setup_testing_defaults
from xml.etree import ElementTree

import optuna
import pytest

from fmnist import checkpoint
from search.dashboard.server import DashboardSettings, _application
from search.database.connection import open_storage
from search.database.url import default_url
from search.formatting import percent
from search.study.record import CHECKPOINT, history_of
from tests.conftest import NEEDS_CHROMIUM
from tests.postgresql import Server
from tests.search.dashboard.serving import SECRET, USER, Site, basic, free_port, refused, serving


def copied(searched: Path, tmp_path: Path) -> Path:
    """A copy of the output for a test that changes it."""
    return shutil.copytree(searched, tmp_path / "copied")


def trials_of(output: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(storage=open_storage(default_url(output)), study_name="shown").trials


def content(output: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the database."""
    with sqlite3.connect(output / "studies.db") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}  # noqa: S608


@pytest.fixture(scope="module")
def site(searched: Path) -> Iterator[Site]:
    """The dashboard served to this machine."""
    with serving(searched) as served:
        yield served


@pytest.fixture(scope="module")
def gated(searched: Path) -> Iterator[Site]:
    """A read-only dashboard with a sign-in."""
    with serving(searched, "--auth", USER, "--read-only", FMNIST_SEARCH_PASSWORD=SECRET) as served:
        served.ask("/api/meta", Authorization=basic(USER, SECRET))  # signed-in users are exempt from delays
        yield served


def test_studies_are_served_to_this_machine_only(site: Site) -> None:
    assert site.ask("/dashboard").status == 200
    assert [study["study_name"] for study in site.ask("/api/studies").json()["study_summaries"]] == ["shown"]
    listening = Path(f"/proc/{site.process.pid}/net/tcp").read_text()
    port = f":{int(site.address.rsplit(':', 1)[1]):04X}"
    addresses = {row.split()[1] for row in listening.splitlines()[1:] if row.split()[1].endswith(port)}
    assert addresses == {f"0100007F{port}"}


def test_a_trial_shows_its_learning_curve_confusion_matrix_and_checkpoint(site: Site) -> None:
    shown, stored = site.study()["trials"], trials_of(site.output)
    best = sorted(stored[:12], key=lambda trial: trial.value or 0.0)[-1]
    trial = shown[best.number]
    names = ["learning-curve.svg", "confusion-matrix.svg", best.user_attrs[CHECKPOINT]["name"]]
    assert [artifact["filename"] for artifact in trial["artifacts"]] == names

    curve, confusion, file = (site.ask(site.artifact(trial, name)) for name in names)
    assert [each.status for each in (curve, confusion, file)] == [200] * 3
    for picture in (curve, confusion):
        assert picture.headers["Content-Type"] == "image/svg+xml"
        assert ElementTree.fromstring(picture.body).tag.endswith("svg")  # noqa: S314  # it is ours
    assert f"trial {best.number}: {percent(history_of(best)[-1].accuracy)} test" in curve.body.decode()
    numbers = [int(number) for number in re.findall(r">(\d+)</text>", confusion.body.decode())]
    rows = best.user_attrs[CHECKPOINT]["confusion"]
    assert numbers == [number for line, row in enumerate(rows) for number in (line, *row)]  # a column has its head
    assert file.body == (site.output / "shown" / "checkpoints" / names[2]).read_bytes()
    assert checkpoint.parse(file.body, names[2]).history[-1].accuracy == best.value


@NEEDS_CHROMIUM
def test_a_browser_shows_study_figures_and_a_checkpoint_to_download(site: Site, browser: Any) -> None:
    best = max(trials_of(site.output)[:12], key=lambda trial: trial.value or 0.0)
    name = best.user_attrs[CHECKPOINT]["name"]
    context, wrong = browser.new_context(viewport={"width": 1200, "height": 900}), []
    page = context.new_page()
    page.on("request", lambda request: wrong.append(request.url) if not is_of(site, request.url) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{site.address}/dashboard")
    page.get_by_role("heading", name="shown").click()
    for title in ("Hyperparameter importance", "Test accuracy and cost", "Confusion matrix of the best network"):
        page.locator(".gtitle", has_text=title).wait_for()

    page.goto(f"{site.address}/dashboard/studies/1/trials?numbers={best.number}")
    card = page.locator(f'a[download="{name}"]')
    card.wait_for()
    page.wait_for_function("[...document.images].length == 2 && [...document.images].every(one => one.naturalWidth)")
    with page.expect_download() as download:
        card.click()
    kept = site.output / "shown" / "checkpoints" / name
    assert Path(download.value.path()).read_bytes() == kept.read_bytes()
    context.close()
    assert wrong == []


def is_of(site: Site, url: str) -> bool:
    return url.startswith((site.address, "data:", "blob:"))


def test_clients_without_accept_encoding_get_uncompressed_files(site: Site) -> None:
    connection = HTTPConnection(urlsplit(site.address).netloc)
    connection.putrequest("GET", "/static/bundle.js", skip_accept_encoding=True)
    connection.endheaders()
    with connection.getresponse() as response:
        assert (response.status, response.headers["Content-Encoding"]) == (200, None)
    connection.close()


def test_the_dashboard_does_not_import_torch(searched: Path) -> None:
    """torch takes seconds to import and much memory."""
    call = [sys.executable, "-m", "search", "dashboard", "--output", str(searched), "--port", str(free_port())]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        site = Site(searched, process.stdout.readline().split("/dashboard")[0], process)  # type: ignore[arg-type]
        trial = site.study()["trials"][0]
        assert site.ask(site.artifact(trial, "confusion-matrix.svg")).status == 200
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.terminate()


def test_only_kept_checkpoints_are_shown(site: Site) -> None:
    listed = {
        artifact["filename"]
        for trial in site.study()["trials"]
        for artifact in trial["artifacts"]
        if artifact["filename"].endswith(".pt")
    }
    kept = {file.name for file in (site.output / "shown" / "checkpoints").glob("*.pt")}
    assert listed == kept
    assert len(kept) == 5


def test_the_report_is_shown_as_custom_plots_and_a_note(site: Site) -> None:
    study, stored = site.study(), trials_of(site.output)[:12]
    plots = {plot["id"]: json.loads(plot["graph_object"]) for plot in study["plotly_graph_objects"]}
    assert plots.keys() == {"importances", "costs", "confusion"}
    bars = plots["importances"]["data"][0]
    assert set(bars["y"]) == {"filters", "learning_rate"}
    assert len(bars["error_x"]["array"]) == 2
    accuracies = {accuracy for trace in plots["costs"]["data"] for accuracy in trace["y"]}
    best = max(stored, key=lambda trial: trial.value or 0.0)
    assert max(accuracies) <= (best.value or 0.0)
    assert plots["confusion"]["data"][0]["z"] == best.user_attrs[CHECKPOINT]["confusion"]
    assert f"Trial {best.number}: {percent(best.value or 0.0)} test accuracy" in study["note"]["body"]
    database = f"sqlite:///{site.output}/studies.db"
    assert f"fmnist-search reproduce shown {best.number} --storage {database}" in study["note"]["body"]


@pytest.fixture(params=["a page", "the API", "a static file", "a picture", "a checkpoint", "nothing"])
def path(request: pytest.FixtureRequest, site: Site) -> str:
    """A path of each kind."""
    trial = max(site.study()["trials"][:12], key=lambda each: each["values"][0])
    paths = {
        "a page": "/dashboard/studies/1",
        "the API": "/api/studies/1",
        "a static file": "/static/bundle.js",
        "a picture": site.artifact(trial, "learning-curve.svg"),
        "a checkpoint": site.artifact(trial, trial["artifacts"][2]["filename"]),
        "nothing": "/nothing",
    }
    return paths[request.param]


def test_every_path_requires_the_sign_in(gated: Site, path: str) -> None:
    wrong = [
        {},
        *({"Authorization": basic(*both)} for both in ((USER, "wrong"), ("other", SECRET), (USER, ""), ("", SECRET))),
        {"Authorization": basic(USER, SECRET).replace("Basic", "Bearer")},
        {"Authorization": basic(USER, f"{SECRET}\0")},
        {"Authorization": "Basic"},
        {"Authorization": "Basic !"},
        {"Authorization": "Basic ÿ"},
    ]
    for headers in wrong:
        for method in ("GET", "HEAD", "POST", "DELETE"):
            answer = gated.ask(path, method, **headers)
            assert answer.status in (401, 429), (method, headers)
            assert answer.status == 429 or answer.headers["WWW-Authenticate"].startswith("Basic ")
            assert len(answer.body) < 100
    found = 404 if path == "/nothing" else 200
    assert gated.ask(path, Authorization=basic(USER, SECRET)).status == found


def changes(trial: int, waiting: int) -> list[tuple[str, str, dict[str, object]]]:
    """A request for each kind of change."""
    file = "data:text/plain;base64,AAAA"
    return [
        ("POST", "/api/studies", {"study_name": "new", "directions": ["maximize"]}),
        ("POST", "/api/studies/1/rename", {"study_name": "renamed"}),
        ("PUT", "/api/studies/1/note", {"version": 2, "body": "other"}),
        ("PUT", f"/api/studies/1/{trial}/note", {"version": 1, "body": "other"}),
        ("POST", f"/api/trials/{waiting}/user-attrs", {"user_attrs": {"a": 1}}),
        ("POST", f"/api/artifacts/1/{waiting}", {"file": file, "filename": "a.txt"}),
        ("POST", "/api/artifacts/1", {"file": file, "filename": "a.txt"}),
        ("POST", f"/api/trials/{waiting}/tell", {"state": "COMPLETE", "values": [1.0]}),
        ("POST", "/incompatible-rdb-schema", {}),
        ("DELETE", "/api/studies/1", {}),
    ]


def test_a_read_only_dashboard_refuses_every_change(gated: Site, site: Site) -> None:
    trials, before = site.study()["trials"], content(gated.output)
    picture = site.artifact(trials[0], "learning-curve.svg")
    requests = [*changes(trials[0]["trial_id"], trials[12]["trial_id"]), ("DELETE", f"/api{picture}", {})]
    for method, path, body in requests:
        answer = gated.ask(path, method, body, Authorization=basic(USER, SECRET))
        assert (answer.status, answer.body) == (403, b"This dashboard is read-only.\n"), path
    assert content(gated.output) == before
    assert not (gated.output / "uploads").exists()


def test_a_dashboard_that_is_not_read_only_accepts_changes(searched: Path, tmp_path: Path) -> None:
    output = copied(searched, tmp_path)
    trials = trials_of(output)
    with serving(output) as served:
        for method, path, body in changes(trials[0]._trial_id, trials[12]._trial_id):
            if path == "/incompatible-rdb-schema":
                continue  # upgrades databases of other versions
            if path == "/api/studies/1/rename":
                continue  # refused
            before = content(output)
            assert served.ask(path, method, body).status in (201, 204), path
            assert content(output) != before, path
    assert list((output / "uploads").iterdir()) == []  # the two uploads were deleted with their study


def test_an_empty_server_database_is_served(tmp_path: Path, postgresql: Server) -> None:
    with serving(tmp_path, "--storage", postgresql.create_database()) as served:
        assert served.ask("/api/studies").json()["study_summaries"] == []


def test_renaming_a_study_is_refused(site: Site) -> None:
    for name in ("renamed", "../elsewhere"):
        answer = site.ask("/api/studies/1/rename", "POST", {"study_name": name})
        assert (answer.status, b"refer to a study by name" in answer.body) == (403, True)
    assert site.study()["name"] == "shown"


def test_a_study_name_cannot_lead_out_of_the_output_folder(searched: Path, tmp_path: Path) -> None:
    """Such as a name written directly to the database."""
    output = copied(searched, tmp_path)
    with serving(output) as served:
        best = max(served.study()["trials"][:12], key=lambda each: each["values"][0])
        path = served.artifact(best, best["artifacts"][2]["filename"])
        for name in ("../copied/shown", str(output / "shown")):
            with sqlite3.connect(output / "studies.db") as database:
                database.execute("UPDATE studies SET study_name = ?", [name])
            answer = served.ask(path)
            assert (answer.status, b"outside the output folder" in answer.body) == (502, True)


def test_uploads_cannot_run_scripts_in_the_dashboards_origin(searched: Path, tmp_path: Path) -> None:
    output = copied(searched, tmp_path)
    with serving(output) as served:
        file = {"file": "data:text/html;base64,PHNjcmlwdD4=", "filename": "page.html"}
        identifier = served.ask("/api/artifacts/1", "POST", file).json()["artifact_id"]
        answer = served.ask(f"/artifacts/1/{identifier}")
        assert answer.headers["Content-Security-Policy"] == "sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_a_read_only_dashboard_refuses_large_requests(gated: Site) -> None:
    assert gated.ask("/api/studies", "POST", "x" * 2**17).status == 413


def test_uploads_can_be_read_and_removed(searched: Path, tmp_path: Path) -> None:
    output = copied(searched, tmp_path)
    with serving(output) as served:
        file = {"file": "data:text/plain;base64,Ym9vdHM=", "filename": "learning-curve.svg"}
        trial = trials_of(output)[12]._trial_id
        identifier = served.ask(f"/api/artifacts/1/{trial}", "POST", file).json()["artifact_id"]
        assert served.ask(f"/artifacts/1/{trial}/{identifier}").body == b"boots"  # and not our own learning curve
        assert [file.name for file in (output / "uploads").iterdir()] == [identifier]
        assert served.ask(f"/api/artifacts/1/{trial}/{identifier}", "DELETE").status == 204
        assert served.ask(f"/artifacts/1/{trial}/{identifier}").status == 404
        assert served.ask(f"/api/artifacts/1/{trial}/{identifier}", "DELETE").status == 404
        assert list((output / "uploads").iterdir()) == []


def test_deleting_a_study_deletes_its_checkpoints(searched: Path, tmp_path: Path) -> None:
    output = copied(searched, tmp_path)
    with serving(output) as served:
        assert served.ask("/api/studies/1", "DELETE", {}).status == 204
        assert served.ask("/api/studies").json()["study_summaries"] == []
    assert list((output / "shown" / "checkpoints").glob("*.pt")) == []
    assert len(list((searched / "shown" / "checkpoints").glob("*.pt"))) == 5


def test_only_artifacts_can_be_read(searched: Path, tmp_path: Path) -> None:
    output = copied(searched, tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("boots")
    with serving(output) as served:
        trial = max(served.study()["trials"][:12], key=lambda each: each["values"][0])
        name = trial["artifacts"][2]["filename"]
        path = served.artifact(trial, name)
        folder = path.rsplit("/", 1)[0]
        for nowhere in ("/artifacts/99/1/00", "/artifacts/1/9999/00", "/artifacts/99/00"):
            assert served.ask(nowhere).status == 404, nowhere
        for inside in ("../../../secret", "..%2f..%2f..%2fsecret", "%2e%2e/secret", str(secret), "0" * 36):
            for before in (folder, "/artifacts/1", "/static", "/dashboard"):
                answer = served.ask(f"{before}/{inside}")
                assert b"boots" not in answer.body
                assert answer.status in (200, 404) if before == "/dashboard" else answer.status in (403, 404)
        # names changed directly in the database
        for altered in ("../../../secret", str(secret), "..", "."):
            with sqlite3.connect(output / "studies.db") as database:
                mine = f"key = 'checkpoint' AND trial_id = {trial['trial_id']}"
                (record,) = database.execute(f"SELECT value_json FROM trial_user_attributes WHERE {mine}").fetchone()  # noqa: S608
                new = json.dumps(json.loads(record) | {"name": altered})
                database.execute(f"UPDATE trial_user_attributes SET value_json = ? WHERE {mine}", [new])  # noqa: S608
            answer = served.ask(path)
            assert (answer.status, b"it leads out of the folder" in answer.body) == (502, True)


def test_a_missing_checkpoint_is_reported(searched: Path, tmp_path: Path) -> None:
    output = copied(searched, tmp_path)
    with serving(output) as served:
        trial = max(served.study()["trials"][:12], key=lambda each: each["values"][0])
        name = trial["artifacts"][2]["filename"]
        (output / "shown" / "checkpoints" / name).unlink()
        answer = served.ask(served.artifact(trial, name))
        assert (answer.status, answer.body.decode()) == (404, f"{name} not found in the study's checkpoints\n")
        served.process.kill()
        assert "Traceback" not in served.process.communicate()[1]


def test_reading_does_not_wait_for_writers(site: Site) -> None:
    with sqlite3.connect(site.output / "studies.db", isolation_level=None) as database:
        database.execute("BEGIN IMMEDIATE")
        assert site.ask("/api/studies").status == 200  # a write transaction would wait for a minute
        assert site.ask("/api/studies/1").status == 200
        database.execute("ROLLBACK")


def test_requests_with_another_host_name_are_refused(site: Site, gated: Site) -> None:
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "", "[::2]:80", "127.0.0.1.evil:1"):
        assert site.ask("/api/studies", Host=host).status == 403, host
        assert gated.ask("/api/studies", Host=host).status == 401, host
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:9", "[::1]", "[::1]:9"):
        assert site.ask("/api/studies", Host=host).status == 200, host
    # with a sign-in, it may be behind a proxy
    assert gated.ask("/api/studies", Host="dash.example", Authorization=basic(USER, SECRET)).status == 200


ELSEWHERE = "192.0.2.1"  # reserved for documentation (RFC 5737): no machine has it


@pytest.mark.parametrize("host", [ELSEWHERE, "0.0.0.0", "::"])  # noqa: S104
def test_without_a_sign_in_other_machines_are_refused(searched: Path, host: str) -> None:
    code, line = refused(searched, "--host", host)
    assert code == 2
    assert line.startswith(f"Error: --host {host}: other machines could reach the dashboard; require a sign-in with ")


@pytest.mark.parametrize("arguments", [("--insecure",), ("--auth", USER)])
def test_auth_or_insecure_allows_other_machines(searched: Path, arguments: tuple[str, ...]) -> None:
    """The test only checks that it tries to listen there."""
    code, line = refused(searched, "--host", ELSEWHERE, "--port", "80", *arguments, FMNIST_SEARCH_PASSWORD=SECRET)
    assert code == 1
    assert line == (
        f"Error: port 80 cannot be opened on {ELSEWHERE} (Cannot assign requested address); "
        "choose an address of this machine with --host"
    )


def test_ctrl_c_ends_the_server_quietly(searched: Path) -> None:
    with serving(searched) as served:
        served.process.send_signal(signal.SIGINT)
        _, errors = served.process.communicate()
        assert (served.process.returncode, errors) == (0, "")


def test_a_port_in_use_is_a_one_line_error(site: Site) -> None:
    port = urlsplit(site.address).port
    code, line = refused(site.output, "--port", str(port))
    assert code == 1
    assert line == (
        f"Error: port {port} cannot be opened on 127.0.0.1 (Address already in use); choose another with --port"
    )


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--auth", "me"], 2, "--auth me needs a password: name a file with --password-file, or set FMNIST_SEARCH_"),
        (["--auth", "me", "--password-file", "absent"], 2, "File 'absent' does not exist."),
        (["--auth", "me", "--password-file", "{empty}"], 2, "the first line is empty; write the password there"),
        (["--password-file", "{empty}"], 2, "--password-file needs a user; name one with --auth"),
        (["--auth", "a:b", "--password-file", "{full}"], 2, "--auth 'a:b' is not a valid user name; use one without"),
        (["--auth", "", "--password-file", "{full}"], 2, "--auth '' is not a valid user name"),
        (["--host", "no host"], 1, "--host no host: "),
        (["--output", "absent"], 1, "no database absent/studies.db"),
        (["--port", "0"], 2, "0 is not in the range"),
    ],
)
def test_bad_input_is_a_one_line_error(
    searched: Path, tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    (tmp_path / "empty").write_text("\nsecond\n")
    (tmp_path / "full").write_text(SECRET)
    filled = [each.format(empty=tmp_path / "empty", full=tmp_path / "full") for each in arguments]
    code, line = refused(searched, *filled, FMNIST_SEARCH_PASSWORD="")
    assert code == exit_code
    assert line.startswith("Error: ")
    assert message in line


def test_a_password_file_has_precedence_and_is_never_printed(searched: Path, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\nanother line\n")
    arguments = ("--auth", USER, "--password-file", str(file))
    with serving(searched, *arguments, FMNIST_SEARCH_PASSWORD="of the environment") as served:  # noqa: S106
        assert served.ask("/api/studies", Authorization=basic(USER, SECRET)).status == 200
        assert served.ask("/api/studies", Authorization=basic(USER, "of the environment")).status == 401
        assert served.ask("/api/studies/9", Authorization=basic(USER, SECRET)).status == 404
        served.process.kill()
        assert SECRET not in "".join(served.process.communicate())


def test_the_password_prompt_does_not_echo(searched: Path) -> None:
    port = free_port()
    command = f"{sys.executable} -m search dashboard --output {searched} --port {port} --auth me"
    environment = {name: value for name, value in os.environ.items() if name != "FMNIST_SEARCH_PASSWORD"}
    terminal = subprocess.Popen(
        ["script", "--quiet", "--return", "--command", f"exec {command}", "/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert terminal.stdin
    assert terminal.stdout
    shown = b""
    while not shown.endswith(b"Password for me: "):
        shown += terminal.stdout.read(1) or pytest.fail(shown.decode())
    terminal.stdin.write(b"boots\n")
    terminal.stdin.flush()
    while b"http://" not in shown or not shown.endswith(b"\n"):
        shown += terminal.stdout.read(1) or pytest.fail(shown.decode())
    asked = Site(searched, f"http://127.0.0.1:{port}", terminal)  # type: ignore[arg-type]  # of bytes
    assert asked.ask("/api/studies", Authorization=basic("me", "boots")).status == 200
    assert asked.ask("/api/studies").status == 401
    assert b"boots" not in shown
    terminal.stdin.write(b"\x03")  # Ctrl-C
    terminal.stdin.flush()
    assert b"boots" not in terminal.communicate()[0]
    assert terminal.returncode == 0


def test_the_stock_dashboard_reads_the_database_without_changing_it(searched: Path, tmp_path: Path) -> None:
    output, port = copied(searched, tmp_path), free_port()
    url = default_url(output)
    before = content(output)
    stock = [sys.executable, "-m", "optuna_dashboard._cli", url, "--port", str(port), "--server", "wsgiref"]
    process = subprocess.Popen(stock, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline() == f"Listening on http://127.0.0.1:{port}/\n"
    served = Site(output, f"http://127.0.0.1:{port}", process)  # type: ignore[arg-type]
    while True:
        try:
            assert served.ask("/dashboard").status == 200
            break
        except ConnectionRefusedError:
            assert process.poll() is None  # it prints that line just before it listens
    study = served.study()
    assert len(study["trials"]) == 13
    assert {plot["id"] for plot in study["plotly_graph_objects"]} == {"importances", "costs", "confusion"}
    assert "## Result" in study["note"]["body"]
    assert served.ask("/api/studies/1/param_importances").status == 200
    assert served.ask("/csv/1").body.count(b"\n") == 14
    process.terminate()
    assert "Traceback" not in process.communicate()[1]
    assert content(output) == before


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_deleted_database_is_reported(tmp_path: Path, method: str) -> None:
    url = default_url(tmp_path)
    optuna.create_study(storage=open_storage(url, "create"), study_name="s")
    settings = DashboardSettings(url, lambda study: tmp_path / study.study_name, tmp_path / "uploads", "127.0.0.1", 0)
    application = _application(settings, local=False)
    answers: list[str] = []

    def ask() -> bytes:
        body = b'{"study_name": "t", "directions": ["minimize"]}'
        environ: dict[str, Any] = {"PATH_INFO": "/api/studies", "CONTENT_TYPE": "application/json"}
        environ |= {"REQUEST_METHOD": method, "CONTENT_LENGTH": str(len(body)), "wsgi.input": BytesIO(body)}
        setup_testing_defaults(environ)
        return b"".join(application(environ, lambda status, *_: answers.append(status)))  # type: ignore[arg-type, return-value]

    ask()
    assert answers.pop().startswith("20")
    (tmp_path / "studies.db").unlink()
    assert re.fullmatch(rb".*studies\.db was deleted or replaced.*\n", ask())
    assert answers == ["502 Bad Gateway"]
    assert not (tmp_path / "studies.db").exists()


def connected(site: Site) -> socket.socket:
    host = urlsplit(site.address)
    return socket.create_connection((host.hostname, host.port), timeout=50)


def test_idle_connections_of_one_client_do_not_block_others(gated: Site) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(gated)) for _ in range(200)]
        for number, connection in enumerate(idle):
            if number % 2:  # the other half sends nothing
                with suppress(ConnectionError):  # replaced by a newer connection
                    connection.sendall(b"GET /api/studies HTTP/1.1\r\n")
        for _ in range(5):
            assert gated.ask("/api/studies", Authorization=basic(USER, SECRET)).status == 200
        held = [connection for connection in idle if not _is_closed(connection)]
        assert len(held) <= 32


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_request_sent_byte_by_byte_is_closed(gated: Site) -> None:
    with connected(gated) as slow:
        slow.sendall(b"GET /api/studies HTTP/1.1\r\nX: ")
        while not _is_closed(slow):
            with suppress(ConnectionError):
                slow.sendall(b"x")
            select.select([slow], [], [], 0.5)


def test_wrong_passwords_are_logged_and_delay_the_next_attempt(searched: Path) -> None:
    with serving(searched, "--auth", USER, FMNIST_SEARCH_PASSWORD=SECRET) as served:
        for _ in range(5):  # after the third, early attempts are refused unchecked
            assert served.ask("/api/studies", Authorization=basic(USER, "wrong")).status in (401, 429)
        assert served.ask("/api/studies").status == 401  # a request without credentials is not delayed
        while (answer := served.ask("/api/studies", Authorization=basic(USER, SECRET))).status == 429:
            assert 1 <= int(answer.headers["Retry-After"]) <= 4
        assert answer.status == 200
        refusals = [served.ask("/api/studies", Authorization=basic(USER, "wrong")).status for _ in range(2)]
        assert 429 in refusals  # one correct sign-in does not reset the count
        assert (
            served.ask("/api/studies", Authorization=basic(USER, SECRET)).status == 200
        )  # signed-in users stay signed in
        served.process.kill()
        lines = served.process.communicate()[1].splitlines()
    failed = [
        re.search(r"sign-in from 127.0.0.1 failed \((\d+) times\); next attempt allowed in (\d+) s", line)
        for line in lines
    ]
    assert [match.groups() for match in failed if match][:3] == [("1", "0"), ("2", "0"), ("3", "1")]
    assert not any("wrong" in line or SECRET in line for line in lines)


def test_pages_of_another_origin_cannot_make_changes(searched: Path, tmp_path: Path) -> None:
    with serving(copied(searched, tmp_path)) as served:
        own = served.address
        note = {"body": "boots", "version": 1}
        for origin in (
            "http://evil.example",
            "null",
            "http://127.0.0.1:1",
            "http://[",
            own.replace("127.0.0.1", "localhost"),
        ):
            assert served.ask("/api/studies/1/note", "PUT", note, Origin=origin).status == 403, origin
            assert served.ask("/api/studies/1", Origin=origin).status == 200
        assert served.ask("/api/studies/1/note", "PUT", note, Origin=own).status in (204, 409)


@pytest.mark.parametrize(
    ("method", "path", "kind", "content", "status"),
    [
        ("GET", "/api/studies/99999999999999999999", None, None, 404),
        ("GET", "/api/studies/9999999999", None, None, 404),
        ("GET", "/csv/99999999999999999999", None, None, 404),
        ("GET", "/artifacts/1/99999999999999999999/00", None, None, 404),
        ("POST", "/api/trials/99999999999999999999/tell", "application/json", b'{"state": "Fail"}', 404),
        ("DELETE", "/api/studies/7", "application/json", b"{}", 404),
        ("POST", "/api/studies", "text/plain", b'{"study_name": "x", "directions": ["minimize"]}', 415),
        ("POST", "/api/studies", "application/x-www-form-urlencoded", b"study_name=x", 415),
        ("POST", "/api/studies", "application/json", b"{", 400),
        ("POST", "/api/studies", "application/json", b"\xff", 400),
        ("POST", "/api/studies", "application/json", b"[" * 100_000, 400),
        ("GET", "/api/studies/" + "9" * 5000, None, None, 404),
        ("POST", "/api/studies", "application/json", b"[1]", 400),
        ("POST", "/api/studies", "application/json", b'{"study_name": 5, "directions": 7}', 400),
        ("POST", "/api/trials/13/user-attrs", "application/json", b'{"user_attrs": 5}', 400),
        ("POST", "/api/artifacts/1/13", "application/json", b'{"file": "data:text/plain;base64,***"}', 400),
        ("POST", "/api/artifacts/1/13", "application/json", b'{"file": "boots"}', 400),
        ("POST", "/api/artifacts/1/13", "application/json", b'{"file": 5}', 400),
        ("POST", "/api/artifacts/1/13", "application/json", b"{}", 400),
        ("POST", "/api/artifacts/1", "application/json", b'{"file": "data:;base64,YQ==", "filename": 5}', 400),
        ("POST", "/api/artifacts/1/999", "application/json", b'{"file": "data:;base64,YQ==", "filename": "x"}', 404),
    ],
)
def test_malformed_requests_are_refused_and_leave_no_files(
    changeable: Site, method: str, path: str, kind: str | None, content: bytes | None, status: int
) -> None:
    host = urlsplit(changeable.address)
    connection = HTTPConnection(host.hostname or "", host.port, timeout=50)
    connection.request(method, path, content, {"Content-Type": kind} if kind else {})
    assert connection.getresponse().status == status
    connection.close()
    assert len(changeable.ask("/api/studies").json()["study_summaries"]) == 1
    assert not (changeable.output / "uploads").exists()


@pytest.fixture(scope="module")
def changeable(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A dashboard that accepts changes; its log must have no traceback."""
    with serving(copied(searched, tmp_path_factory.mktemp("changeable"))) as served:
        yield served
        served.process.terminate()
        errors = served.process.communicate()[1]
        assert "Traceback" not in errors
        assert "File " not in errors
