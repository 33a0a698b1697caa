"""The commands as a user meets them: processes of their own, real files, real signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fmnist import checkpoint
from fmnist.data import CLASSES
from search import definition
from search.cli import studies
from search.storage import default_url, open_storage
from search.study import load_study
from tests.conftest import STUDY, Command

LONG = STUDY.replace("epochs = 2", "epochs = 400")


def counts(command: Command, name: str = "tiny") -> dict[str, int]:
    return json.loads(command("status", name, "--json").stdout)["trials"]


def one_line(result: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The error message, after checking that it is one clear line and no traceback."""
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("Error: ")
    return last


@pytest.fixture
def launch(tmp_path: Path, tiny_folder: Path):  # type: ignore[no-untyped-def]
    """Start a search in the background, in a session of its own as a terminal has one."""

    def launched(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "search", "run", *arguments],
            cwd=tmp_path,
            env={**os.environ, "FMNIST_DATA": str(tiny_folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return launched


@pytest.fixture
def start(launch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Start a search in the background and wait until a trial has reported an accuracy."""

    def started(*arguments: str) -> subprocess.Popen[str]:
        process = launch(*arguments)
        folder = tmp_path / "studies" / "tiny" / "checkpoints"
        while not list(folder.glob("trial-*.pt")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        return process

    return started


def test_run_reaches_its_number_then_has_nothing_to_do_then_adds_the_difference(
    command: Command, study_file: Path, tmp_path: Path
) -> None:
    first = command("run", "tiny.toml", "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert counts(command) == {"complete": 6, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    assert "Done: 6 trials, 6 complete and 0 pruned." in first.stdout
    assert len(re.findall(r"^\[\d/6\] trial \d complete at", first.stdout, re.MULTILINE)) == 6
    assert "Best trials of study tiny" in first.stdout
    assert "fmnist-search dashboard" in first.stdout
    assert (tmp_path / "studies" / "tiny" / "report.html").is_file()

    again = command("run", "tiny.toml")
    assert again.returncode == 0
    assert "Nothing left to do: study tiny has 6 finished trials of 6" in again.stdout

    more = command("run", "tiny.toml", "--trials", "8", "--quiet")
    assert more.returncode == 0
    assert "[7/8]" not in more.stdout
    assert counts(command)["complete"] == 8


def test_status_and_best_print_the_promised_json(command: Command, study_file: Path, tmp_path: Path) -> None:
    command("run", "tiny.toml", "--trials", "2", "--workers", "1", "--quiet")
    status = json.loads(command("status", "tiny", "--json").stdout)
    assert list(status) == ["study", "direction", "trials", "best"]
    assert (status["study"], status["direction"]) == ("tiny", "maximize")
    best = json.loads(command("best", "tiny", "--json").stdout)
    assert best == status["best"]
    assert list(best) == ["number", "value", "params", "checkpoint"]
    study = load_study(open_storage(default_url(tmp_path / "studies")), "tiny")
    assert (best["number"], best["value"], best["params"]) == (
        study.best_trial.number,
        study.best_value,
        study.best_params,
    )
    saved = checkpoint.load(tmp_path / best["checkpoint"])
    assert saved.history[-1].accuracy == best["value"]
    for name in ("status", "best"):
        text = command(name, "tiny").stdout
        assert f"{100 * best['value']:.2f} % on test" in text
    assert "one seed" in command("best", "tiny").stdout


def test_best_is_null_before_a_trial_is_complete(command: Command, study_file: Path) -> None:
    study_file.write_text(LONG)
    stopped = command("run", "tiny.toml", "--trials", "2", "--timeout", "0.5", "--workers", "1")
    assert "Time is up: 0 of 2 trials are finished; the same command goes on from here." in stopped.stdout
    assert stopped.returncode == 0
    assert json.loads(command("best", "tiny", "--json").stdout) is None
    assert json.loads(command("status", "tiny", "--json").stdout)["best"] is None
    assert counts(command) == {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 2}


def test_a_smaller_number_still_ends_with_what_an_earlier_run_asked_for(command: Command, study_file: Path) -> None:
    command("run", "tiny.toml", "--trials", "4", "--timeout", "0.1", "--workers", "1", "--quiet")
    result = command("run", "tiny.toml", "--trials", "2", "--workers", "1")
    assert "Study tiny: 4 trials, as an earlier run asked for more than 2, of simple" in result.stdout
    assert counts(command) == {"complete": 4, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_search_gives_its_tickets_back_and_goes_on_where_it_was(
    command: Command, study_file: Path, start, tmp_path: Path, number: signal.Signals
) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(LONG)
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "Stopping after the running epochs" in output
    assert "Traceback" not in output
    assert counts(command) == {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 2}

    path = tmp_path / "studies" / "tiny" / "checkpoints" / "trial-00000.pt"
    before = checkpoint.load(path)
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    while len((after := checkpoint.load(path)).history) == len(before.history):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert after.history[: len(before.history)] == before.history


def test_a_second_interrupt_stops_at_once_and_holds_nothing(command: Command, study_file: Path, start) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(LONG.replace("filters = 4", "filters = 256").replace("high = 4", "high = 256"))
    process = start("tiny.toml", "--trials", "1", "--workers", "1")
    os.killpg(process.pid, signal.SIGINT)
    for line in process.stdout:
        if "Stopping" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in output
    assert counts(command)["running"] == 0


def test_a_search_killed_hard_is_finished_by_the_same_command(command: Command, study_file: Path, start) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(STUDY.replace("epochs = 2", "epochs = 30"))
    process = start("tiny.toml", "--workers", "2")
    process.kill()
    process.communicate()  # ends when the workers, which hold the pipe, have ended too
    result = command("run", "tiny.toml", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert counts(command) == {"complete": 6, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}


def test_ctrl_c_while_workers_start_is_as_quiet_as_later(study_file: Path, launch) -> None:  # type: ignore[no-untyped-def]
    process = launch("tiny.toml", "--workers", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 3:  # two workers and multiprocessing's resource tracker
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in output


def test_a_study_in_which_everything_fails_ends_with_the_reason(
    command: Command, study_file: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "studies" / "tiny"
    checkpoints.mkdir(parents=True)
    (checkpoints / "checkpoints").write_text("a file where the folder should be")
    message = one_line(command("run", "tiny.toml", "--workers", "1", "--quiet"), 1)
    assert "trials have failed, the last with: " in message
    assert "FileExistsError" in message or "NotADirectoryError" in message


def test_a_changed_definition_is_refused_with_the_difference(command: Command, study_file: Path) -> None:
    command("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet")
    message = one_line(command("run", "tiny.toml", "--seed", "3", "--pruner", "median"), 2)
    assert "pruner: none -> median; seed: 0 -> 3" in message
    assert "--name" in message
    assert command("run", "tiny.toml", "--seed", "3", "--trials", "1", "--name", "other", "--quiet").returncode == 0


def test_output_moves_everything(command: Command, study_file: Path, tmp_path: Path) -> None:
    command("run", "tiny.toml", "--trials", "1", "--workers", "1", "--output", "elsewhere", "--quiet")
    assert sorted(path.name for path in (tmp_path / "elsewhere").glob("*")) == ["studies.db", "studies.db.lock", "tiny"]
    assert not (tmp_path / "studies").exists()
    assert json.loads(command("status", "tiny", "--output", "elsewhere", "--json").stdout)["trials"]["complete"] == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["run", "absent.toml"], 2, "absent.toml: No such file"),
        (["run", "nosuch"], 2, "no study named 'nosuch'"),
        (["run", "--trials", "0"], 2, "0 is not in the range x>=1"),
        (["run", "--trials", "many"], 2, "'many' is not a valid integer"),
        (["run", "--sampler", "best"], 2, "'best' is not one of"),
        (["run", "--storage", "mysql://u:hunter2@h/d"], 1, "mysql: no such storage"),
        (["run", "--name", "../up"], 2, "'../up' cannot name a folder"),
        (["run", "--device", "cuda"], 2, "--device cuda: there is none on this machine"),
        (["status"], 1, "no database studies/studies.db; start a search"),
        (["report"], 1, "no database"),
        (["dashboard"], 1, "no database"),
        (["train", "--epochs", "0"], 2, "--epochs: should be greater than or equal to 1, not 0"),
        (["train", "--dropout", "1.5"], 2, "--dropout: should be less than 1, not 1.5"),
        (["evaluate", "absent.pth"], 1, "absent.pth: No such file"),
        (["data", "--data-dir", "."], 1, "no train-images-idx3-ubyte.gz in it"),
    ],
)
def test_bad_input_is_one_clear_line(command: Command, arguments: list[str], exit_code: int, message: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        arguments = ["run", "--device", "cuda9"]
        message = "is not one of"
    line = one_line(command(*arguments), exit_code)
    assert message in line
    assert "hunter2" not in line


def test_train_prints_the_write_ups_lines_and_saves(command: Command, tmp_path: Path) -> None:
    arguments = ["--architecture", "simple", "--filters", "4", "--epochs", "2", "--seed", "3"]
    result = command("train", *arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for line in lines[:2]:
        assert re.fullmatch(r"Test set: Average loss: \d\.\d{4}, Accuracy: \d+/597 \(\d+%\)", line)
    assert all(name in result.stdout for name in CLASSES)
    saved = checkpoint.load(tmp_path / "fmnist_cnn_full.pth")
    assert (saved.seed, saved.hyperparameters.filters, len(saved.history)) == (3, 4, 2)

    scored = command("evaluate", "fmnist_cnn_full.pth")
    assert scored.stdout.splitlines()[0] == lines[1]
    assert "true / predicted" in scored.stdout
    values = json.loads(command("evaluate", "fmnist_cnn_full.pth", "--json").stdout)
    assert (values["correct"], values["total"], values["score_on"]) == (saved.history[-1].correct, 597, "test")


def test_scoring_on_validation_says_so_everywhere(command: Command, study_file: Path) -> None:
    result = command("run", "tiny.toml", "--trials", "1", "--workers", "1", "--score-on", "validation")
    assert "validation accuracy" in result.stdout
    assert "on validation" in command("best", "tiny").stdout
    line = command("train", "--architecture", "simple", "--epochs", "1", "--score-on", "validation").stdout
    assert re.match(r"Validation set: .*/200 ", line)


def test_a_foreign_checkpoint_is_refused(command: Command, tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(2)}, tmp_path / "foreign.pth")
    assert "foreign.pth: not a checkpoint of fmnist-search" in one_line(command("evaluate", "foreign.pth"), 1)


def test_data_says_what_it_found(command: Command, tiny_folder: Path) -> None:
    assert command("data").stdout == (
        f"data set 'digits': 1,200 training and 597 test images, verified, in {tiny_folder}\n"
    )


def test_the_choices_of_the_flags_are_those_of_the_study_files() -> None:
    assert studies.SAMPLERS == definition.SAMPLERS
    assert studies.PRUNERS == definition.PRUNERS


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """What makes --help answer at once: neither torch nor optuna nor any of their like is loaded."""
    program = (
        "import sys; from search.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print('loaded', *{'torch', 'optuna', 'plotly', 'sklearn', 'numpy', 'pydantic'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded"
