"""A search of a user's own network with worker processes, and the commands that use its results."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.database.connection import open_storage
from search.database.url import default_url
from search.run.search import run_search
from search.run.supervise import RunSettings
from search.study import definition
from search.study.record import ATTEMPTS
from search.study.store import definition_of, finalists_of, load_study
from tests.conftest import worker_pids
from tests.fmnist.test_own_network import NET, body
from tests.postgresql import Server
from tests.processes import Process

SAYS = "# <script>alert(1)</script>\n" + NET.replace(
    "def forward(self, x):", "def forward(self, x):\n        print('forward')"
)
OTHER = "import pathlib; pathlib.Path('ran').touch()\n" + SAYS
MINE = """\
trials = 4
finalists = 1
pruner = "none"

[defaults]
architecture = "my_net.py:CNNModel"
epochs = 1
augmentation = 0.0

[[start]]
kind = "avg"
kernel_size = 3

[space]
kernel_size = { choices = [3, 5, 7] }
hidden = { low = 2, high = 32, log = true }
kind = { choices = ["max", "avg"] }
bias = { choices = [true, false], when = { kind = "max" } }
dropout = { low = 0, high = 1 }
learning_rate = { low = 0.0005, high = 0.02, log = true }
"""
GIVEN = {"kernel_size": 5, "hidden": 8, "kind": "max", "bias": True, "dropout": 0.25}


class Place:
    """A working directory in which commands run."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data

    def start(self, *arguments: str) -> Process:
        environment = {**os.environ, "FMNIST_DATA": str(self.data), "HOME": str(self.folder)}
        return Process(*arguments, cwd=self.folder, env=environment)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(arguments, process.wait(), output, errors)

    def study(self, name: str = "mine") -> optuna.Study:
        return load_study(open_storage(default_url(self.folder / "studies")), name)

    def refused(self, *arguments: str) -> list[str]:
        """The lines of an error; none of the network's code was run."""
        done = self(*arguments)
        assert done.returncode == 2, done
        assert not (self.folder / "ran").exists()
        return done.stderr.partition("Error: ")[2].splitlines()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Place, str]:
    """A place with a finished search, and what `run --json` printed."""
    place = Place(tmp_path_factory.mktemp("searched"), tiny_folder)
    (place.folder / "my_net.py").write_text(SAYS)
    (place.folder / "mine.toml").write_text(MINE)
    done = place("run", "mine.toml", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()) == {"forward"}
    return place, done.stdout


@pytest.fixture
def copy(searched: tuple[Place, str], tmp_path: Path) -> Place:
    """A copy of it that a test may change."""
    shutil.copytree(searched[0].folder, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path, searched[0].data)


def test_a_search_completes_and_prints_only_json(searched: tuple[Place, str]) -> None:
    place, printed = searched
    *trials, result = map(json.loads, printed.splitlines())
    assert result["event"] == "result"
    assert result["finalists"]["final"]
    study = place.study()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert len([each for each in trials if each["study"] == "mine"]) == 4
    assert definition_of(study).defaults.network == GIVEN
    assert study.user_attrs["network"]["text"] == SAYS
    default, start, *others = (trial.params for trial in study.trials)
    assert default == {**GIVEN, "learning_rate": 0.002}
    assert start == {name: value for name, value in default.items() if name != "bias"} | {
        "kind": "avg",
        "kernel_size": 3,
    }
    for params in others:
        assert ("bias" in params) == (params["kind"] == "max")
        assert isinstance(params["hidden"], int)
        assert 0 <= params["dropout"] <= 1
        assert isinstance(params["dropout"], float)
    again = finalists_of(study)
    assert again
    assert {trial.state for trial in again.trials} == {TrialState.COMPLETE}


def test_its_results_are_reproduced_scored_and_shown(searched: tuple[Place, str]) -> None:
    place, _ = searched
    reproduced = place("reproduce", "mine", "1")
    assert reproduced.stdout.endswith("Metrics: bit-identical. Weights: bit-identical.\n")
    assert json.loads(place("evaluate", "studies/mine/best.pt", "--json").stdout)["total"] == 300
    assert place("best", "mine").returncode == place("status", "mine").returncode == 0
    page = (place.folder / "studies" / "mine" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page
    assert "did not run here" not in page


def test_enqueued_tickets_can_fix_its_hyperparameters(copy: Place) -> None:
    assert copy("enqueue", "mine", "--set", "kind=avg", "--set", "hidden=3", "--set", "dropout=1").returncode == 0
    assert (
        "--set bias=true: bias is searched only where kind is max"
        in copy("enqueue", "mine", "--set", "kind=avg", "--set", "bias=true").stderr
    )
    worker = copy("worker", "mine", "--workers", "1")
    assert worker.returncode == 0, worker.stderr
    last = copy.study().trials[4]
    assert last.state == TrialState.COMPLETE
    assert (last.params["kind"], last.params["hidden"], last.params["dropout"]) == ("avg", 3, 1.0)


def test_a_changed_file_is_refused_with_the_difference_and_restoring_it_resumes(copy: Place) -> None:
    assert copy("enqueue", "mine").returncode == 0
    before = copy.study().get_trials()
    net = copy.folder / "my_net.py"
    net.write_text(OTHER)
    for command in (("worker", "mine", "--workers", "1"), ("reproduce", "mine", "1"), ("finalists", "mine")):
        first, *difference = copy.refused(*command)
        assert re.search(r"my_net\.py: differs from the recorded file, so it was not run; restore it, or name", first)
        assert "+import pathlib; pathlib.Path('ran').touch()" in difference
    assert copy("report", "mine").returncode == 0
    page = (copy.folder / "studies" / "mine" / "report.html").read_text()
    assert "code did not run here" in page
    assert not (copy.folder / "ran").exists()
    done = copy("run", "mine.toml", "--workers", "1", "--trials", "5")  # names the file, so its code runs
    assert done.returncode == 2
    assert re.search(
        r"Error: study 'mine' was started with another version of my_net\.py: restore that, or .*--name",
        done.stderr,
    )
    assert "+import pathlib" in done.stderr
    assert copy.study().get_trials() == before
    (copy.folder / "ran").unlink()
    net.rename(copy.folder / "kept.py")
    for command in (("worker", "mine", "--workers", "1"), ("evaluate", "studies/mine/best.pt"), ("run", "mine.toml")):
        (line,) = copy.refused(*command) if command[0] != "run" else copy(*command).stderr.splitlines()
        assert "my_net.py: No such file or directory; put it there, or name its folder with --network-dir" in line
    assert copy("report", "mine").returncode == 0
    assert "No such file" in (copy.folder / "studies" / "mine" / "report.html").read_text()
    (copy.folder / "elsewhere").mkdir()
    (copy.folder / "elsewhere" / "my_net.py").write_text(SAYS)
    worker = copy("worker", "mine", "--workers", "1", "--network-dir", "elsewhere")
    assert worker.returncode == 0, worker.stderr
    assert [trial.state for trial in copy.study().trials] == [TrialState.COMPLETE] * 5


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Place:
    return Place(tmp_path, tiny_folder)


def wait_for(condition: Callable[[], object], process: Process) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def running(place: Place) -> list[Any]:
    try:
        trials = place.study().get_trials(deepcopy=False)
    except Exception:  # the study is being created
        return []
    return [trial for trial in trials if trial.state == TrialState.RUNNING and trial.intermediate_values]


def test_a_replaced_worker_runs_the_code_that_the_search_started_with(place: Place, tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(NET)
    long = MINE.replace("epochs = 1", "epochs = 12").replace("finalists = 1", "finalists = 0")
    (tmp_path / "mine.toml").write_text(long.replace("trials = 4", "trials = 2"))
    process = place.start("run", "mine.toml", "--workers", "1")
    try:
        wait_for(lambda: running(place), process)
        (tmp_path / "my_net.py").write_text(OTHER)
        (pid,) = worker_pids(process.pid)
        os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert not (tmp_path / "ran").exists()
    trials = place.study().get_trials(deepcopy=False)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert len({attempt["pid"] for trial in trials for attempt in trial.user_attrs[ATTEMPTS]}) == 2
    (tmp_path / "my_net.py").write_text(NET)
    first = next(trial.number for trial in trials if len(trial.user_attrs[ATTEMPTS]) == 2)
    reproduced = place("reproduce", "mine", str(first))
    assert reproduced.stdout.endswith("Metrics: bit-identical. Weights: bit-identical.\n")


@pytest.mark.parametrize("sampler", ["gp", "qmc", "random", "grid"])
def test_samplers_on_postgresql(
    postgresql: Server, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    (tmp_path / "my_net.py").write_text(NET)
    space = {
        "hidden": {"low": 2, "high": 3} if sampler == "grid" else {"low": 2, "high": 32, "log": True},
        "kind": {"choices": ["max", "avg"]},
        "bias": {"choices": [True, False]},
    }
    monkeypatch.chdir(tmp_path)
    given = {"architecture": "my_net.py:CNNModel", "epochs": 1, "hidden": 3}
    defined = definition.StudyDefinition.model_validate(
        {"sampler": sampler, "pruner": "none", "trials": 3, "finalists": 0, "defaults": given, "space": space}
    )
    settings = RunSettings.of("s", storage=postgresql.create_database(), workers=1, data_dir=tiny_folder, quiet=True)
    result = run_search(defined, settings)
    trials = result.study.get_trials(deepcopy=False)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert len({tuple(trial.params.values()) for trial in trials}) == 3
    assert all(type(trial.params["bias"]) is bool for trial in trials)


FAILS = body(
    "self.n, self.how = 0, how",
    "self.n += 1\n"
    "        if self.n > 3 and self.training and self.how == 'exits': raise SystemExit\n"
    "        if self.n > 3 and self.training and self.how == 'raises': raise OSError('of mine')\n"
    "        return self.fc(x.flatten(1))",
    signature=", how: str = 'works', width: int = 1, height: int = 1",
).replace("super().__init__();", "super().__init__(); assert width * height < 20;")
FAILING = """\
trials = 3
sampler = "random"
seed = 2
pruner = "none"
finalists = 0

[defaults]
architecture = "my_net.py:CNNModel"
epochs = 1

[[start]]
how = "exits"

[[start]]
how = "raises"

[[start]]
width = 9
height = 9

[space]
how = { choices = ["works", "does", "is", "runs", "goes", "on", "and on", "still", "yet", "exits", "raises"] }
width = { choices = [1, 2, 9] }
height = { choices = [1, 2, 9] }
"""


def test_an_error_in_the_network_fails_its_trial_with_file_and_line(place: Place, tmp_path: Path) -> None:
    """An invalid combination that the dry run did not cover, an exit, and an OSError that is not the disk's."""
    (tmp_path / "my_net.py").write_text(FAILS)
    (tmp_path / "mine.toml").write_text(FAILING)
    done = place("run", "mine.toml", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    trials = place.study().get_trials(deepcopy=False)
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 3
    for number, expected in enumerate(
        (
            "my_net.py, line 13: calls exit(); remove the call",
            "my_net.py, line 14: OSError: of mine; correct it",
            "my_net.py, line 9: AssertionError:; correct it",
        ),
        start=1,
    ):
        assert trials[number].state == TrialState.FAIL
        assert trials[number].user_attrs["reason"] == f"NetworkError: {expected}"
        assert len(trials[number].user_attrs[ATTEMPTS]) == 1
    assert "Traceback" not in done.stderr
    assert all(map(json.loads, done.stdout.splitlines()))


def test_a_hung_training_run_is_killed_and_its_trial_retried(place: Place) -> None:
    """Also without another worker that could take over the trial."""
    hangs = """self.n += self.training
        if self.n > 8 and not pathlib.Path("hung").exists():
            pathlib.Path("hung").touch()
            threading.Event().wait()
        return self.fc(x.flatten(1))"""
    (place.folder / "my_net.py").write_text(f"import pathlib, threading\n{body('self.n = 0', hangs)}")
    study = f"{MINE.partition('[[start]]')[0]}[space]\n{MINE.splitlines()[-1]}\n"
    (place.folder / "mine.toml").write_text(study.replace("finalists = 1", "finalists = 0"))
    done = place("run", "mine.toml", "--workers", "1", "--grace", "3", "--trials", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    first, second = place.study().trials
    assert [trial.state for trial in (first, second)] == [TrialState.COMPLETE] * 2
    outcomes = [attempt["outcome"] for attempt in first.user_attrs[ATTEMPTS]]
    assert "made no progress" in outcomes[0]
    assert outcomes[1:] == ["complete"]
    assert "is killed, because its training makes no progress" in done.stderr
