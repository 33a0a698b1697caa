"""Builds the image, runs the whole service, kills and stops workers mid-trial, and checks the result.

Uses Docker if its engine runs, else podman and podman-compose. Run it with `make docker-test`; DOCKER_BUILD_ARGS adds
arguments to the build, such as a proxy or a mounted pip.conf.
"""

import base64
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE, POSTGRES, IMAGE = (
    "docker.io/library/debian:bookworm-slim",
    "localhost/postgres-test",
    "localhost/fmnist-search-test",
)
PROJECT, PORT = "fmnist-search-test", 18080
TRIALS = 12
STUDY = f"""\
description = "short trials of the write-up's network"
trials = {TRIALS}
sampler = "random"
pruner = "none"
finalists = 0

[defaults]
architecture = "simple"
epochs = 3

[space]
learning_rate = {{ low = 0.0005, high = 0.005, log = true }}
"""
# Without access to a registry, Debian's PostgreSQL replaces the official image, as far as compose.yaml needs it.
POSTGRES_ENTRYPOINT = """\
#!/bin/sh
set -eu
export PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
install --directory --owner postgres --group postgres --mode 700 "$PGDATA" /var/run/postgresql
as="setpriv --reuid postgres --regid postgres --clear-groups"
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    $as initdb --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth scram-sha-256 $POSTGRES_INITDB_ARGS
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | $as postgres --single -D "$PGDATA" postgres
fi
exec $as "$@" -c listen_addresses='*'
"""


class Service:
    """The containers of one compose project, from a copy of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = "docker" if _docker_runs() else "podman"
        if self.engine == "docker":
            self.compose = ["docker", "compose"]
        else:
            self.compose = [str(Path(sys.executable).with_name("podman-compose"))]
        self.environment = os.environ | {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "DASHBOARD_PORT": str(PORT),
            "STUDY": "short",
            "FMNIST_SEARCH_IMAGE": IMAGE,
        }
        if self.engine == "podman" and not Path("/run/systemd/system").exists():
            self.environment["CONTAINERS_CONF"] = str(_without_systemd(folder))

    def call(self, *command: str | Path, check: bool = True, echo: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command and capture its output; echo: print the command."""
        if echo:
            print("$", shlex.join(map(str, command)), flush=True)
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise SystemExit(f"exit code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command without capturing its output."""
        print("$", shlex.join(command), flush=True)
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL)

    def composed(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.call(*self.compose, "--file", "docker/compose.yaml", *arguments, check=check)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        labels = ("com.docker.compose.project=" + PROJECT, "com.docker.compose.service=" + service)
        filters = [each for label in labels for each in ("--filter", f"label={label}")]
        return self.call(self.engine, "ps", "--quiet", "--no-trunc", *filters, echo=False).stdout.split()

    def remove(self) -> None:
        """Remove containers, volumes and network."""
        # First by label: podman-compose leaves scaled workers and what they use.
        label = f"label=com.docker.compose.project={PROJECT}"
        containers = self.call(self.engine, "ps", "--all", "--quiet", "--filter", label, echo=False).stdout.split()
        self.call(self.engine, "rm", "--force", *containers, check=False)
        self.composed("--profile", "search", "down", "--volumes", check=False)

    def inspect(self, thing: str, template: str) -> str:
        return self.call(self.engine, "inspect", "--format", template, thing).stdout.strip()

    def sql(self, query: str) -> list[str]:
        """The rows of a query with one column; none while the database is unavailable."""
        (container,) = self.containers("postgres")
        psql = ["psql", "--host", "127.0.0.1", "--username", "fmnist", "--dbname", "studies", "-tAc", query]
        self.environment["PGPASSWORD"] = (self.folder / "docker/secrets/postgres-password").read_text().strip()
        exec_ = [self.engine, "exec", "--env", "PGPASSWORD", container]
        return self.call(*exec_, *psql, check=False, echo=False).stdout.splitlines()

    def build(self) -> None:
        """Build the image, and the base images too if no registry can be reached."""
        if self.call(self.engine, "pull", "--quiet", BASE, check=False).returncode:
            self.environment["POSTGRES_IMAGE"] = POSTGRES
            self._bases_from_packages()
        revision = self.call("git", "-C", ROOT, "describe", "--always", "--dirty").stdout.strip()
        kind = ["--format", "docker"] if self.engine == "podman" else []  # the OCI format has no health check
        own = shlex.split(os.environ.get("DOCKER_BUILD_ARGS", ""))
        named = ["--build-arg", f"REVISION={revision}", "--tag", IMAGE, "--file", "docker/Dockerfile"]
        began = time.monotonic()
        self.call(self.engine, "build", *kind, *own, *named, ".")
        took = time.monotonic() - began
        size = int(self.inspect(IMAGE, "{{.Size}}"))
        print(f"Image: {size / 1e9:.2f} GB, built in {took:.0f} s")

    def _bases_from_packages(self) -> None:
        (self.folder / "entrypoint").write_text(POSTGRES_ENTRYPOINT)
        (self.folder / "entrypoint").chmod(0o755)
        if self.call(self.engine, "inspect", BASE, check=False).returncode:
            self._from_packages(BASE, "ca-certificates")
        self._from_packages(POSTGRES, "postgresql", "--customize-hook=copy-in entrypoint /usr/local/bin")

    def _from_packages(self, tag: str, package: str, *hooks: str) -> None:
        tar = self.folder / "base.tar"
        self.call("mmdebstrap", "--variant=minbase", f"--include={package}", *hooks, "bookworm", tar)
        entry = ["--change", 'ENTRYPOINT ["/usr/local/bin/entrypoint"]'] if hooks else []
        self.call(self.engine, "import", *entry, tar, tag)


def _docker_runs() -> bool:
    commands = (["docker", "info"], ["docker", "compose", "version"])
    return bool(shutil.which("docker")) and not any(
        subprocess.run(each, capture_output=True, check=False).returncode for each in commands
    )


def _without_systemd(folder: Path) -> Path:
    """A configuration for podman without systemd and without the right to raise process limits."""
    file = folder / "containers.conf"
    file.write_text(
        '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\n'
    )
    return file


@contextmanager
def service() -> Iterator[Service]:
    """A service with its own secrets, not yet started; removed completely on exit."""
    with tempfile.TemporaryDirectory(prefix="fmnist-search-") as temporary:
        folder = Path(temporary)
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in files.stdout.splitlines():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        (folder / "short.toml").write_text(STUDY)
        made = Service(folder)
        made.call("docker/init-secrets")
        made.remove()  # left over from a killed run
        try:
            yield made
        finally:
            made.remove()


def until(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Wait until a condition returns a true value, and return it."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"timeout after {seconds:.0f} s: {what}")
        time.sleep(0.5)
    return value


def check(what: str, passed: object) -> None:
    print(f"{'ok    ' if passed else 'FAILED'} {what}", flush=True)
    if not passed:
        raise SystemExit(1)


def attempts(running: Service, *states: str) -> dict[int, list[dict[str, Any]]]:
    """The attempts at each trial in one of `states`, by trial number."""
    rows = running.sql(
        "SELECT json_build_object('number', number, 'state', state, 'attempts', value_json::json) "
        "FROM trial_user_attributes JOIN trials USING (trial_id) WHERE key = 'attempts'"
    )
    return {each["number"]: each["attempts"] for each in map(json.loads, rows) if each["state"] in states}


def status_of(path: str, authorization: str = "") -> int:
    """The dashboard's HTTP status for a path; authorization: USER:PASSWORD."""
    connection = HTTPConnection("127.0.0.1", PORT, timeout=30)
    encoded = base64.b64encode(authorization.encode()).decode()
    connection.request("GET", path, headers={"Authorization": f"Basic {encoded}"} if authorization else {})
    return connection.getresponse().status


def listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def main() -> None:
    """Build the image, run the service with failures, and check the result."""
    with service() as running:
        running.build()
        running.composed("up", "--detach", "--no-build", "--scale", "worker=3")
        workers = running.containers("worker")
        check("three workers are running", len(workers) == 3)
        check_confinement(running, workers[0])

        study = ["--volume", f"{running.folder}/short.toml:/short.toml:ro", "search", "run", "/short.toml"]
        search = running.start(
            *running.compose, "--file", "docker/compose.yaml", "--profile", "search", "run", "--rm", "-T", *study
        )
        killed, stopped = disturb(running, workers, search)
        check("run succeeds", search.wait() == 0)

        found = attempts(running, "COMPLETE")
        print(f"attempts at trial {killed}, whose worker was killed: {[each['outcome'] for each in found[killed]]}")
        print(f"attempts at trial {stopped}, whose worker was stopped: {[each['outcome'] for each in found[stopped]]}")
        check("another worker finished the killed worker's trial", len(found[killed]) > 1)
        check("the stopped worker returned its trial", found[stopped][0]["outcome"] == "given back")
        states = running.sql("SELECT state || ' ' || count(*) FROM trials GROUP BY state")
        check(f"the number of trials is exact: {', '.join(states)}", states == [f"COMPLETE {TRIALS}"])
        by_host = {each[-1]["host"] for each in found.values()}
        check(f"containers that finished trials: {len(by_host)}", len(by_host) > 1)

        health = ["fmnist-search", "doctor", "--only", "storage"]
        check(
            "the health check passes",
            not running.call(running.engine, "exec", running.containers("worker")[0], *health).returncode,
        )
        password = (running.folder / "docker/secrets/dashboard-password").read_text().strip()
        until(listens, "the dashboard responds")
        for path in ("/dashboard", "/api/studies", "/static/bundle.js"):
            without, signed_in = status_of(path), status_of(path, f"me:{password}")
            check(f"{path}: {without} without sign-in, {signed_in} with it", (without, signed_in) == (401, 200))

        (dashboard,) = running.containers("dashboard")
        running.call(running.engine, "cp", f"{dashboard}:/studies/short/report.html", "report.html")
        report = (running.folder / "report.html").read_text()
        check(f"the report was written: {len(report) / 1e6:.1f} MB", "Study short" in report)


def check_confinement(running: Service, worker: str) -> None:
    """Check that a worker has no root, capabilities or new privileges, and writes only to the volume and /tmp."""

    def inside(program: str) -> str:
        return running.call(running.engine, "exec", worker, "python3", "-c", program).stdout

    status = dict(line.split(":\t", 1) for line in inside("print(open('/proc/1/status').read())").splitlines() if line)
    check("the worker runs as user 10001", status["Uid"].split() == ["10001"] * 4)
    check("it has no capabilities", int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0)
    check("it cannot gain privileges", status["NoNewPrivs"] == "1")
    program = "import os; print([each for each in ('/', '/opt', '/var/lib', '/studies', '/tmp') if os.access(each, 2)])"
    check("it can write only to /studies and /tmp", inside(program).strip() == "['/studies', '/tmp']")


def disturb(running: Service, workers: list[str], search: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Kill one worker and stop another, each mid-trial; return the numbers of their trials."""

    def busy() -> dict[str, int]:
        """The trial numbers of busy worker containers."""
        by_host = {tried[-1]["host"]: number for number, tried in attempts(running, "RUNNING").items() if tried}
        return {each: by_host[each[:12]] for each in workers if each[:12] in by_host}

    until(lambda: len(busy()) >= 2 or search.poll() is not None, "two workers are training trials")
    check("the search is still running", search.poll() is None)
    connections = running.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'studies' GROUP BY client_addr")
    print(f"connections of each container: {', '.join(sorted(connections))}")
    (kill, killed), (stop, stopped), *_ = busy().items()
    running.call(running.engine, "kill", "--signal", "KILL", kill)
    began = time.monotonic()
    running.call(running.engine, "stop", "-t", "120", stop)
    print(f"killed one worker at trial {killed}, stopped one at trial {stopped} in {time.monotonic() - began:.1f} s")
    return killed, stopped


if __name__ == "__main__":
    main()
