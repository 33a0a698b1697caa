"""Studies and checkpoints of version 0.2.0 in today's commands; tests/made_by_0_2_0/README.md says what they are."""

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from fmnist import checkpoint, data
from fmnist.classes import CLASSES
from fmnist.data import DataSet
from fmnist.evaluation import evaluate
from search.database.connection import open_storage
from search.database.url import default_url
from search.study import definition
from search.study.definition import differences
from search.study.record import CHECKPOINT, attempts_of, saved_of
from search.study.store import _resumed, definition_of, load_study
from tests.conftest import Command
from tests.factories import digits
from tests.search.dashboard.serving import Site, serving

MADE = Path(__file__).with_name("made_by_0_2_0")
FILES = sorted(str(path.relative_to(MADE)) for path in MADE.glob("**/*.pt"))
WINNER = "Winner: trial 6, 90.67 % test accuracy, mean of 3 fresh seeds"
BEST = {"learning_rate": 0.00503732016775692, "filters": 3, "dropout": 0.1, "augmentation_kind": "both"}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the studies."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    data.write(folder, *digits(600, 300))
    return folder


@pytest.fixture(scope="module")
def images(data_folder: Path) -> DataSet:
    return data.load(data_folder)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A copy at the default --output in the working directory of `here` and `process`."""
    return shutil.copytree(MADE, tmp_path / "studies")


@pytest.fixture
def here(made: Path, invoke: Command, data_folder: Path) -> Run:
    return lambda *arguments: invoke(*arguments, data_dir=data_folder)


@pytest.fixture
def process(made: Path, command: Command, data_folder: Path) -> Run:
    """Run a command that starts workers."""
    return lambda *arguments: command(*arguments, data_dir=data_folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(shutil.copytree(MADE, tmp_path_factory.mktemp("served") / "studies")) as served:
        yield served


def printed(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a successful command."""
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The error of a failed command: its last line, after log lines of workers."""
    assert result.returncode in (1, 2), result
    assert "Traceback" not in result.stderr
    *_, last = result.stderr.splitlines()
    assert result.stderr.count("Error: ") == 1
    return last


def study_in(folder: Path, name: str) -> optuna.Study:
    return load_study(open_storage(default_url(folder)), name)


def content(folder: Path) -> dict[str, list[Any]]:
    """All rows of the database, and all other files."""
    with sqlite3.connect(folder / "studies.db") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}  # noqa: S608
    database.close()
    files = [path for path in sorted(folder.glob("**/*")) if path.is_file() and not path.name.startswith("studies.db")]
    return rows | {str(path.relative_to(folder)): [path.read_bytes()] for path in files}


@pytest.mark.parametrize("name", ["tiny", "networks", "stopped"])
def test_a_stored_definition_equals_its_study_file_read_today(made: Path, name: str) -> None:
    """So hyperparameters and keys that were added later have the value that changes nothing."""
    stored, wanted = definition_of(study_in(made, name)), definition.read(MADE / f"{name}.toml")
    assert differences(stored.identity(), _resumed(stored, wanted).identity()) == []


def test_status_counts_the_trials(here: Run) -> None:
    text = printed(here("status", "tiny"))
    assert "Study tiny: 8 trials finished (3 complete, 5 pruned), 0 running, 0 waiting, 0 failed." in text
    assert "Best so far: trial 6, 88.00 % on test." in text
    assert "Finalists: 6 of 6 training runs finished. " in text
    assert WINNER in text
    assert json.loads(printed(here("status", "tiny", "--json"))) == {
        "study": "tiny",
        "direction": "maximize",
        "trials": {"complete": 3, "pruned": 5, "failed": 0, "running": 0, "waiting": 0, "paused": 0},
        "best": {
            "number": 6,
            "mark": None,
            "value": 264 / 300,
            "params": BEST,
            "checkpoint": "studies/tiny/checkpoints/trial-00006-epoch-4.pt",
        },
        "winner": json.loads(printed(here("best", "tiny", "--json")))["winner"],
    }
    assert "4 trials finished (4 complete" in printed(here("status", "networks"))
    assert "0 trials finished (0 complete, 0 pruned), 0 running, 1 waiting" in printed(here("status", "stopped"))


def test_best_prints_the_winner_and_its_checkpoint(here: Run) -> None:
    assert WINNER in printed(here("best", "tiny"))
    assert "Best checkpoint  studies/tiny/best.pt  (91.33 %, 1 of 3 training runs)" in printed(here("best", "tiny"))
    answer = json.loads(printed(here("best", "tiny", "--json")))
    assert (answer["best"]["params"], answer["winner"]["checkpoint"]) == (BEST, "studies/tiny/best.pt")
    assert "Checkpoint: studies/networks/checkpoints/trial-00000-epoch-3.pt" in printed(here("best", "networks"))
    assert "Study stopped has no complete trial yet." in printed(here("best", "stopped"))


def test_the_report_has_its_numbers(here: Run, made: Path) -> None:
    assert printed(here("report", "tiny")) == "studies/tiny/report.html\n"
    page = (made / "tiny" / "report.html").read_text().replace("\u00a0", " ")
    for part in (WINNER, "3 complete, 5 pruned", "fmnist_search 0.2.0", "1 audited", "fmnist-search run tiny.toml"):
        assert part in page
    assert printed(here("report", "tiny", "--format", "json")) == "studies/tiny/report.json\n"
    numbers = json.loads((made / "tiny" / "report.json").read_text())
    assert numbers["missing"] is None  # the data set and the checkpoint are available
    assert numbers["answer"]["params"] == numbers["standings"]["finalists"][0]["retrained"]["params"] == BEST
    assert (numbers["standings"]["trained"], numbers["standings"]["outdated"]) == (6, False)
    assert [len(trial["curve"]) for trial in numbers["trials"]] == [6, 3, 6, 3, 2, 1, 6, 1]
    assert numbers["provenance"]["versions"]["fmnist_search"] == "0.2.0"
    assert numbers["network"]["made_with"]["fmnist_search"] == "0.2.0"
    assert (numbers["network"]["images"], numbers["network"]["wrong"]) == (300, 26)


def test_a_report_compares_them_and_shows_one_without_a_complete_trial(here: Run, made: Path) -> None:
    assert printed(here("report", "tiny", "networks", "--format", "json")) == "studies/comparison.json\n"
    compared = json.loads((made / "comparison.json").read_text())
    assert (len(compared["answers"]), compared["left_out"]) == (2, [])
    printed(here("report", "stopped"))
    assert "No trial is complete yet." in (made / "stopped" / "report.html").read_text()


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_reaches_its_recorded_score(file: str, images: DataSet) -> None:
    """Networks of each architecture: their weights must fit today's layers."""
    saved = checkpoint.load(MADE / file)
    assert saved.digest is None  # the format of that time
    assert saved.made_with["fmnist_search"] == "0.2.0"
    found = evaluate(saved.network(), data.split(images, saved.score_on).scored)
    assert found.accuracy == pytest.approx(saved.history[-1].accuracy, abs=0.01)  # processors round differently


def test_the_checkpoints_cover_each_architecture_and_one_can_be_resumed() -> None:
    saved = [checkpoint.load(MADE / file) for file in FILES]
    assert {one.hyperparameters.architecture for one in saved} == {"simple", "cnn", "resnet", "transformer"}
    assert [one.hyperparameters.epochs for one in saved if one.resume] == [6]


def test_networks_predict_and_are_scored_and_exported(here: Run, images: DataSet, tmp_path: Path) -> None:
    sneaker = images.test.images[images.test.labels == 7][0, 0]  # it knows all 31
    Image.fromarray(sneaker.numpy()).save(tmp_path / "seven.png")
    line = printed(here("predict", "studies/tiny/best.pt", "seven.png"))
    assert re.fullmatch(r"seven\.png +Sneaker +\d+\.\d %  whole picture\n", line)
    (answer,) = json.loads(printed(here("predict", "studies/tiny/best.pt", "seven.png", "--json")))
    assert list(answer["probabilities"]) == list(CLASSES)
    scores = json.loads(printed(here("evaluate", "studies/tiny/best.pt", "--json")))
    assert scores["accuracy"] == pytest.approx(274 / 300, abs=0.01)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert "Saved net.onnx\nLargest difference" in printed(here("export", "studies/tiny/best.pt", "--to", "net.onnx"))


def test_the_dashboard_shows_trials_and_a_checkpoint(site: Site) -> None:
    assert site.ask("/dashboard/studies/1/trials").status == 200
    names = {study["study_name"] for study in site.ask("/api/studies").json()["study_summaries"]}
    assert names == {"tiny", "tiny.finalists", "networks", "stopped"}
    trials = site.study()["trials"]
    assert [trial["state"] for trial in trials].count("Pruned") == 5
    for name in ("learning-curve.svg", "confusion-matrix.svg", "trial-00006-epoch-4.pt"):
        answer = site.ask(site.artifact(trials[6], name))
        assert answer.status == 200
    assert answer.body == (MADE / "tiny" / "checkpoints" / name).read_bytes()
    assert "Winner: trial 6" in site.study()["note"]["body"]


def test_a_trial_is_reproduced_or_the_reason_is_reported(here: Run, made: Path) -> None:
    """Bit for bit on its machine and versions; elsewhere its accuracies are compared."""
    result = here("reproduce", "tiny", "3")
    epochs = re.findall(r"^epoch (\S+): recorded (\S+) %, now \S+ %, (?:the same|DIFFERENT)$", result.stdout, re.M)
    assert epochs == [("0.25", "15.67"), ("0.5", "17.00"), ("1", "33.00")]
    same = result.stdout.endswith("Metrics: bit-identical. Weights: bit-identical.\n")
    assert (result.returncode, result.stderr != "") == ((0, False) if same else (1, True))
    assert "trial 0 is WAITING; choose one that is" in refused(here("reproduce", "stopped", "0"))

    with sqlite3.connect(made / "studies.db") as database:  # as if training gave another result today
        trial = database.execute("SELECT trial_id FROM trials WHERE number = 3").fetchone()[0]
        where = "WHERE trial_id = ? AND step = 25"
        database.execute(f"UPDATE trial_intermediate_values SET intermediate_value = 0.5 {where}", (trial,))  # noqa: S608
    database.close()
    other = here("reproduce", "tiny", "3")
    assert other.returncode == 1
    assert re.search("^epoch 0.25: recorded 50.00 %, now .* DIFFERENT$", other.stdout, re.M)
    (note,) = other.stderr.splitlines()
    assert f"started with other versions (fmnist_search: 0.2.0 -> {version('fmnist-search')}" in note


@pytest.mark.parametrize(
    "arguments", [["run", "studies/tiny.toml", "--trials", "9"], ["finalists", "tiny"], ["worker", "stopped"]]
)
def test_commands_that_train_report_the_required_versions_and_change_nothing(
    process: Run, made: Path, arguments: list[str]
) -> None:
    now = version("fmnist-search")
    assert now != "0.2.0", "it is installed as another version than pyproject.toml has: make dev"
    before = content(made)
    line = refused(process(*arguments))
    assert f"was started with other versions (fmnist_search: 0.2.0 -> {now}" in line
    assert "Install the study's versions, or mix them with --allow-mixed." in line
    assert content(made) == before


def test_a_search_is_topped_up_with_allow_mixed(process: Run, made: Path) -> None:
    before, finalists = study_in(made, "tiny").trials, study_in(made, "tiny.finalists").trials
    text = printed(process("run", "studies/tiny.toml", "--trials", "9", "--workers", "2", "--allow-mixed"))
    assert "Study tiny: 9 trials (8 already finished) of cnn" in text
    assert "Done: 9 trials" in text
    study = study_in(made, "tiny")
    assert [trial.number for trial in study.trials if trial.state.is_finished()] == list(range(9))
    for now, then in ((study.trials, before), (study_in(made, "tiny.finalists").trials, finalists)):
        kept = zip(now, then, strict=False)  # added trials come after them
        assert all(
            (one.state, one.value, one.params) == (other.state, other.value, other.params) for one, other in kept
        )


def test_a_stopped_training_run_is_resumed_with_allow_mixed(process: Run, made: Path) -> None:
    result = process("worker", "stopped", "--workers", "1", "--allow-mixed")
    assert result.returncode == 0, result.stderr
    assert "resumed at epoch 0.5" in result.stderr
    (trial,) = study_in(made, "stopped").trials
    assert trial.state == TrialState.COMPLETE
    assert [attempt.step for attempt in attempts_of(trial)] == [50, 600]
    saved = saved_of(trial)
    assert saved is not None
    assert saved.digest is not None
    assert [row[0] for row in saved.history] == [0.25, 0.5, 1, 2, 3, 4, 5, 6]


def test_tickets_are_added(here: Run) -> None:
    assert printed(here("enqueue", "stopped", "--set", "learning_rate=0.005")) == (
        "Study stopped: 1 added, 2 waiting, 2 in total.\n"
    )
    assert "Workers of study stopped stop after" in printed(here("stop", "stopped"))


def test_checkpoints_of_outperformed_trials_are_deleted(here: Run, made: Path) -> None:
    """Records of 0.2.0 mark a deleted checkpoint differently."""
    dropped = [trial.number for trial in study_in(made, "tiny").trials if trial.user_attrs[CHECKPOINT]["name"] is None]
    assert dropped == [0, 1, 2, 3, 4, 5, 7]
    assert printed(here("gc", "tiny")) == "Removed 0 checkpoints of outperformed trials and 0 orphaned files.\n"
    assert printed(here("gc", "networks", "--keep", "1")).startswith("Removed 3 checkpoints of outperformed trials")
    assert [path.name for path in (made / "networks" / "checkpoints").glob("*.pt")] == ["trial-00000-epoch-3.pt"]


def test_a_study_is_deleted_with_its_finalists_and_files(here: Run, made: Path) -> None:
    assert printed(here("delete", "tiny", "--yes")) == "Deleted study tiny.\n"
    assert not (made / "tiny").exists()
    assert not (made / "tiny.finalists").exists()
    assert optuna.get_all_study_names(open_storage(default_url(made))) == ["networks", "stopped"]
