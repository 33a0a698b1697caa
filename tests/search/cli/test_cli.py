"""The commands as real processes, with real files and real signals."""

import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import optuna
import pytest
import torch
from click.testing import CliRunner

from fmnist import checkpoint
from fmnist.data import CLASSES
from fmnist.hyperparameters import Hyperparameters
from search.cli import main
from search.database.connection import open_storage
from search.database.url import default_url
from search.results.summary import summarize
from search.study.store import load_study
from tests.conftest import Command, Launch, worker_pids, worker_servers
from tests.factories import STUDY
from tests.processes import Process

LONG = STUDY.replace("epochs = 2", "epochs = 400")


def counts(folder: Path, name: str = "tiny") -> dict[str, int]:
    """Trials by state, of the study in a folder's database."""
    study = load_study(open_storage(default_url(folder / "studies")), name)
    return asdict(summarize(study, folder / "studies" / name).trials)


def one_line(result: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The error message, which must be one line without traceback."""
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("Error: ")
    return last


def test_run_reaches_its_goal_then_has_nothing_to_do_then_adds_the_difference(
    command: Command, invoke: Command, study_file: Path, tmp_path: Path
) -> None:
    first = command("run", "tiny.toml", "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert counts(tmp_path) == {"complete": 6, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "paused": 0}
    assert "Done: 6 trials, 6 complete and 0 pruned." in first.stdout
    assert len(re.findall(r"^\[\d/6\] trial \d complete at", first.stdout, re.MULTILINE)) == 6
    assert "Best trials of study tiny" in first.stdout
    assert "fmnist-search dashboard" in first.stdout
    assert (tmp_path / "studies" / "tiny" / "report.html").is_file()

    again = invoke("run", "tiny.toml")
    assert again.returncode == 0
    assert "Nothing left to do: study tiny has 6 finished trials of 6" in again.stdout

    more = invoke("run", "tiny.toml", "--trials", "8", "--quiet")
    assert more.returncode == 0
    assert "[7/8]" not in more.stdout
    assert counts(tmp_path)["complete"] == 8


def test_status_and_best_print_the_documented_json(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    invoke("run", "tiny.toml", "--trials", "2", "--workers", "1", "--quiet")
    status = json.loads(invoke("status", "tiny", "--json").stdout)
    assert list(status) == ["study", "direction", "trials", "best", "winner"]
    assert (status["study"], status["direction"]) == ("tiny", "maximize")
    answer = json.loads(invoke("best", "tiny", "--json").stdout)
    best = answer["best"]
    assert answer == {"best": status["best"], "winner": None}
    assert list(best) == ["number", "mark", "value", "params", "checkpoint"]
    study = load_study(open_storage(default_url(tmp_path / "studies")), "tiny")
    assert (best["number"], best["value"], best["params"]) == (
        study.best_trial.number,
        study.best_value,
        study.best_params,
    )
    saved = checkpoint.load(tmp_path / best["checkpoint"])
    assert saved.history[-1].accuracy == best["value"]
    for name in ("status", "best"):
        text = invoke(name, "tiny").stdout
        assert f"{100 * best['value']:.2f} % on test" in text
    assert "one seed" in invoke("best", "tiny").stdout


def test_a_report_has_the_commands_that_made_it_and_reproduce_its_winner(
    command: Command, invoke: Command, study_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "fmnist-search.toml").write_text("[run]\nquiet = true\n")
    arguments = ["tiny.toml", "--trials", "2", "--workers", "1", "--finalists", "1"]
    assert command("run", *arguments).returncode == 0
    written = invoke("report", "tiny", "--format", "json")
    assert written.stdout == "studies/tiny/report.json\n"
    numbers = json.loads((tmp_path / "studies" / "tiny" / "report.json").read_text())
    expected = shlex.join(["fmnist-search", "run", "--quiet", *arguments])
    assert [run["command"] for run in numbers["provenance"]["runs"]] == [expected]
    name, *again = shlex.split(numbers["answer"]["reproduce"])
    assert (name, again[:2]) == ("fmnist-search", ["reproduce", "tiny.finalists"])
    (tmp_path / "elsewhere").mkdir()
    output, errors = Process(*again, cwd=tmp_path / "elsewhere", env={"HOME": str(tmp_path)}).communicate()
    assert errors == ""
    assert "Metrics: bit-identical. Weights: bit-identical." in output


def test_a_report_is_opened_in_the_users_browser(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    invoke("enqueue", "tiny.toml")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path / "shown"}\n')
    browser.chmod(0o755)
    opened = subprocess.run(
        [sys.executable, "-m", "search", "report", "tiny", "--open"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BROWSER": f"{browser} %s"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert opened.stdout == "studies/tiny/report.html\n"
    page = tmp_path / "studies" / "tiny" / "report.html"
    assert (tmp_path / "shown").read_text().strip() == page.as_uri()
    assert "No trial is complete yet." in page.read_text()
    assert "--open needs a web page" in one_line(invoke("report", "tiny", "--open", "--format", "json"), 2)


def test_several_studies_are_compared_as_numbers_too(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        invoke("enqueue", "tiny.toml", "--name", name)
    assert invoke("report", "one", "two", "--format", "json").stdout == "studies/comparison.json\n"
    compared = json.loads((tmp_path / "studies" / "comparison.json").read_text())
    assert (compared["answers"], compared["left_out"]) == ([], ["one", "two"])


def test_run_json_prints_one_object_per_line_without_delay(
    invoke: Command, study_file: Path, launch, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(STUDY.replace("finalists = 0", "finalists = 1"))
    process = launch("tiny.toml", "--trials", "2", "--workers", "1", "--json")
    first = json.loads(process.stdout.readline())
    assert process.poll() is None
    records = [first, *map(json.loads, process.communicate()[0].splitlines())]
    assert process.returncode == 0
    *trials, result = records
    assert {tuple(each) for each in trials} == {
        ("event", "study", "number", "state", "value", "params", "reason", "finished", "goal")
    }
    study = load_study(open_storage(default_url(tmp_path / "studies")), "tiny")
    of_search = [each for each in trials if each["study"] == "tiny"]
    assert [(each["number"], each["value"], each["params"]) for each in of_search] == [
        (trial.number, trial.value, trial.params) for trial in study.trials
    ]
    assert [(each["state"], each["finished"], each["goal"]) for each in of_search] == [
        ("complete", 1, 2),
        ("complete", 2, 2),
    ]
    assert {each["study"] for each in trials} == {"tiny", "tiny.finalists"}
    assert list(result) == [
        "event", "study", "direction", "trials", "best", "winner", "goal", "stopped", "finalists", "error", "report"
    ]  # fmt: skip
    assert (result["event"], result["goal"], result["stopped"], result["error"]) == ("result", 2, None, None)
    assert json.loads(invoke("best", "tiny", "--json").stdout) == {name: result[name] for name in ("best", "winner")}
    assert json.loads(invoke("status", "tiny", "--json").stdout).items() <= result.items()
    assert result["finalists"]["trained"] == result["finalists"]["wanted"] == len(trials) - 2
    assert (tmp_path / result["report"]).is_file()


def test_a_closed_pipe_ends_the_search_silently(study_file: Path, launch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    process = launch("tiny.toml", "--workers", "1", "--json", stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait() == 1
    assert counts(tmp_path)["running"] == 0


def test_best_is_null_until_a_trial_is_complete(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(LONG)
    stopped = invoke("run", "tiny.toml", "--trials", "2", "--timeout", "0.5", "--workers", "1")
    assert "Time is up: 0 of 2 trials are finished; run the same command to resume." in stopped.stdout
    assert stopped.returncode == 0
    assert json.loads(invoke("best", "tiny", "--json").stdout) == {"best": None, "winner": None}
    assert json.loads(invoke("status", "tiny", "--json").stdout)["best"] is None
    assert counts(tmp_path) == {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 2, "paused": 0}


def test_a_smaller_number_of_trials_does_not_reduce_the_goal_of_an_earlier_run(
    invoke: Command, study_file: Path, start, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(STUDY.replace("epochs = 2", "epochs = 12"))
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    process.kill()
    process.communicate()
    result = invoke("run", "tiny.toml", "--trials", "1", "--workers", "1")
    said = r"Study tiny: 2 trials( \(\d already finished\))?, the goal of an earlier run instead of 1, of simple"
    assert re.match(said, result.stdout)
    assert counts(tmp_path) == {"complete": 2, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "paused": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_search_returns_its_tickets(
    command: Command, study_file: Path, start, tmp_path: Path, number: signal.Signals
) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(LONG)
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    os.killpg(process.pid, number)  # as a terminal and a service manager do
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "Stopping after the running epochs" in output
    assert "Traceback" not in output
    assert counts(tmp_path) == {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 2, "paused": 0}


def test_a_search_resumes_from_its_checkpoint(invoke: Command, study_file: Path, start: Launch, tmp_path: Path) -> None:
    study_file.write_text(LONG)
    invoke("run", "tiny.toml", "--trials", "2", "--workers", "1", "--timeout", "3", "--quiet")
    before = newest_checkpoint(tmp_path)
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    while len((after := newest_checkpoint(tmp_path)).history) == len(before.history):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert after.history[: len(before.history)] == before.history


def newest_checkpoint(folder: Path) -> checkpoint.Checkpoint:
    """The latest checkpoint of trial 0."""
    study = load_study(open_storage(default_url(folder / "studies")), "tiny")
    while True:
        name = study.get_trials()[0].user_attrs["checkpoint"]["name"]
        with contextlib.suppress(checkpoint.CheckpointError):  # it may just have been replaced
            return checkpoint.load(folder / "studies" / "tiny" / "checkpoints" / name)


def test_a_second_interrupt_stops_at_once_and_leaves_no_running_trial(
    command: Command, study_file: Path, start, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
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
    assert counts(tmp_path)["running"] == 0


def test_the_same_command_finishes_a_killed_search(invoke: Command, study_file: Path, start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(STUDY.replace("epochs = 2", "epochs = 12"))
    process = start("tiny.toml", "--trials", "2", "--workers", "2")
    process.kill()
    process.communicate()  # returns when the workers, which hold the pipe, have ended
    result = invoke("run", "tiny.toml", "--trials", "2", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert counts(tmp_path) == {"complete": 2, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "paused": 0}


@pytest.mark.parametrize(("number", "started"), [(signal.SIGINT, worker_servers), (signal.SIGTERM, worker_pids)])
def test_a_signal_to_all_processes_while_workers_start_prints_no_error(
    study_file: Path,
    launch,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    number: signal.Signals,
    started: Callable[[int], list[int]],
) -> None:
    study_file.write_text(LONG)
    process = launch("tiny.toml", "--workers", "2")
    while not started(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in output
    assert "Error" not in output
    study = load_study(open_storage(default_url(tmp_path / "studies")), "tiny")
    attempts = [attempt for trial in study.trials for attempt in trial.user_attrs.get("attempts", [])]
    assert all(attempt["outcome"] == "given back" for attempt in attempts)
    assert counts(tmp_path)["running"] == 0


def test_a_study_whose_trials_all_run_out_of_memory_ends_with_the_reason(
    command: Command, study_file: Path, tmp_path: Path
) -> None:
    larger = STUDY.replace("filters = 4\n", "filters = 1024\nbatch_size = 600\n").replace(
        "low = 2, high = 4", "choices = [1024]"
    )
    study_file.write_text(larger)
    message = one_line(
        command("run", "tiny.toml", "--trials", "20", "--workers", "1", "--quiet", memory=4_000_000_000), 1
    )
    assert "4 trials failed, the last one with: RuntimeError: " in message
    assert "can't allocate memory" in message
    assert counts(tmp_path) == {
        "complete": 0,
        "pruned": 0,
        "failed": 4,
        "running": 0,
        "waiting": 20,
        "paused": 0,
    }  # waiting includes tickets not yet created


def test_an_unusable_artifact_store_is_a_one_line_error(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    assert "unsupported artifact store" in one_line(invoke("run", "tiny.toml", "--artifacts", "ftp://x"), 1)
    assert "file" in one_line(invoke("run", "tiny.toml", "--artifacts", "file", "--name", "other"), 1)


def test_enqueue_worker_gc_and_reproduce_work_together(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    made = invoke("enqueue", "tiny.toml", "--set", "learning_rate=0.003", "--set", "filters=2")
    assert made.stdout == "Study tiny: 1 added, 1 waiting, 1 in total.\n"
    assert invoke("enqueue", "tiny", "--trials", "6").stdout == "Study tiny: 6 added, 7 waiting, 7 in total.\n"
    study_file.unlink()
    worked = invoke("worker", "tiny", "--workers", "1")
    assert worked.returncode == 0, worked.stderr
    assert worked.stdout.startswith("1 worker on study tiny")
    assert re.search(r" INFO tiny trial 0 worker \S+: completed at ", worked.stderr)
    study = load_study(open_storage(default_url(tmp_path / "studies")), "tiny")
    assert study.trials[0].params == {"learning_rate": 0.003, "filters": 2}
    assert counts(tmp_path) == {"complete": 7, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "paused": 0}

    checkpoints = tmp_path / "studies" / "tiny" / "checkpoints"
    assert len(list(checkpoints.glob("trial-*"))) == 5
    best = json.loads(invoke("best", "tiny", "--json").stdout)["best"]
    (checkpoints / "trial-00001-epoch-0.5.pt").touch()
    collected = invoke("gc", "tiny", "--keep", "2").stdout
    assert collected == "Removed 3 checkpoints of outperformed trials and 1 orphaned file.\n"
    assert tmp_path / best["checkpoint"] in checkpoints.glob("trial-*")
    assert len(list(checkpoints.glob("trial-*"))) == 2

    again = invoke("reproduce", "tiny", "3")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("the same\n") == 4
    assert "Metrics: bit-identical. Weights: bit-identical." in again.stdout
    assert "has no trial 7; its last is 6" in one_line(invoke("reproduce", "tiny", "7"), 2)


def test_reproduce_reports_a_difference(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    invoke("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet")
    database = sqlite3.connect(tmp_path / "studies" / "studies.db")
    with database:
        database.execute("UPDATE trial_intermediate_values SET intermediate_value = 0.5 WHERE step = 100")
    database.close()
    again = invoke("reproduce", "tiny", "0")
    assert again.returncode == 1
    assert "epoch 1: recorded 50.00 %, now " in again.stdout
    assert "Metrics: different. Weights: bit-identical." in again.stdout


def test_a_ticket_outside_the_search_space_is_refused(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    message = one_line(invoke("enqueue", "tiny.toml", "--set", "filters=9"), 2)
    assert "--set filters=9: filters is searched in 2 to 4; change it" in message
    assert counts(tmp_path)["waiting"] == 0


def test_delete_asks_first(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    invoke("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet")
    refused = invoke("delete", "tiny")  # standard input is empty
    assert refused.returncode == 1
    assert "Delete study tiny with 1 finished and 0 running trials" in refused.stdout
    assert counts(tmp_path)["complete"] == 1
    assert invoke("delete", "tiny", "--yes").stdout == "Deleted study tiny.\n"
    assert not (tmp_path / "studies" / "tiny").exists()
    assert "no study named 'tiny'" in one_line(invoke("status", "tiny"), 2)


def test_deleting_a_study_ends_its_run(invoke: Command, study_file: Path, start) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(LONG)
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    assert invoke("delete", "tiny", "--yes").returncode == 0
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "study 'tiny' was deleted" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_deleting_the_database_ends_a_run(
    study_file: Path,
    start,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    suffix: str,
) -> None:
    """It ends at the next intermediate value, and keeps the checkpoints."""
    study_file.write_text(LONG)
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    database = tmp_path / "studies" / f"studies.db{suffix}"
    database.unlink()
    output, _ = process.communicate()
    assert process.returncode == 1
    *_, last = output.splitlines()
    checkpoints = tmp_path / "studies" / "tiny" / "checkpoints"
    assert last.startswith(f"Error: studies/studies.db{suffix} was deleted")
    assert tmp_path / last.partition("the checkpoints are in ")[2] == checkpoints
    assert "Traceback" not in output
    assert list(checkpoints.glob("trial-*.pt"))
    if not suffix:
        assert not database.exists()


def test_stop_ends_a_search_in_another_process(invoke: Command, study_file: Path, start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study_file.write_text(LONG)
    process = start("tiny.toml", "--trials", "2", "--workers", "1")
    stopped = invoke("stop", "tiny")
    assert "asked: trial 0 by process" in stopped.stdout
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "Stopped by `fmnist-search stop`: 0 of 2 trials are finished; run the same command to resume." in output
    assert counts(tmp_path) == {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 2, "paused": 0}


def test_a_worker_that_follows_waits_for_database_study_and_tickets(
    invoke: Command, study_file: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    environment = {**os.environ, "FMNIST_DATA": str(tiny_folder)}
    call = ("worker", "tiny", "--follow", "--workers", "1")
    process = Process(*call, cwd=tmp_path, env=environment, stderr=subprocess.STDOUT)
    assert process.stdout
    assert " WARNING tiny: waiting without a time limit for the study: no database " in process.stdout.readline()
    for done in (1, 2):
        invoke("enqueue", "tiny.toml")
        while counts(tmp_path)["complete"] < done:
            assert process.poll() is None
            time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "1 worker on study tiny" in output
    assert re.search(r" INFO tiny trial 1 worker \S+: completed at ", output)
    assert "Stopping after the running epochs" in output


def test_a_worker_without_a_study_is_a_one_line_error(invoke: Command, study_file: Path) -> None:
    assert "no database studies/studies.db" in one_line(invoke("worker", "tiny"), 1)
    invoke("enqueue", "tiny.toml")
    assert "no study named 'tinny' in this database; there are tiny" in one_line(invoke("worker", "tinny"), 2)


def test_a_changed_definition_is_refused_with_the_difference(invoke: Command, study_file: Path) -> None:
    invoke("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet")
    message = one_line(invoke("run", "tiny.toml", "--seed", "3", "--pruner", "median"), 2)
    assert "pruner: none -> median; seed: 0 -> 3" in message
    assert "--name" in message
    assert invoke("run", "tiny.toml", "--seed", "3", "--trials", "1", "--name", "other", "--quiet").returncode == 0


def test_a_machine_of_another_precision_is_refused_before_its_workers_start(
    invoke: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet")
    here = load_study(open_storage(default_url(Path(study_file.parent, "studies"))), "tiny").user_attrs["precision"]
    other = {"float32": "bfloat16", "bfloat16": "float32"}[here]
    monkeypatch.setattr("search.run.search.default_precision", lambda _: other)
    monkeypatch.setattr("search.run.local.Pool.fill", lambda _: pytest.fail("a worker was started"))
    message = one_line(invoke("run", "tiny.toml", "--trials", "2", "--workers", "1"), 2)
    assert f"trained in {here}, but this machine trains in {other}" in message


def test_output_moves_all_files(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    invoke("run", "tiny.toml", "--trials", "1", "--workers", "1", "--output", "elsewhere", "--quiet")
    assert sorted(path.name for path in (tmp_path / "elsewhere").glob("*")) == ["studies.db", "studies.db.lock", "tiny"]
    assert not (tmp_path / "studies").exists()
    assert json.loads(invoke("status", "tiny", "--output", "elsewhere", "--json").stdout)["trials"]["complete"] == 1


@pytest.mark.parametrize("name", ["per%20cent", "what?", "a{b}c#d"])
def test_an_output_folder_may_have_special_characters(
    invoke: Command, study_file: Path, tmp_path: Path, name: str
) -> None:
    assert invoke("enqueue", "tiny.toml", "--output", name).returncode == 0
    worked = invoke("worker", "tiny", "--workers", "1", "--output", name)
    assert worked.returncode == 0, worked.stderr
    assert json.loads(invoke("status", "tiny", "--output", name, "--json").stdout)["trials"]["complete"] == 1
    assert invoke("report", "tiny", "--output", name, "--format", "json").returncode == 0
    report = json.loads((tmp_path / name / "tiny" / "report.json").read_text())
    assert report["provenance"]["database"] == str(tmp_path / name / "studies.db")
    assert list((tmp_path / name / "tiny" / "checkpoints").glob("trial-*"))
    assert not {path.name for path in tmp_path.iterdir()} - {name, "tiny.toml"}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["run", "absent.toml"], 2, "absent.toml: No such file"),
        (["run", "nosuch"], 2, "no study named 'nosuch'"),
        (["run", "--trials", "0"], 2, "0 is not in the range x>=1"),
        (["run", "--trials", "many"], 2, "'many' is not a valid integer"),
        (["run", "--sampler", "best"], 2, "'best' is not one of"),
        (["run", "--storage", "mysql://u:hunter2@h/d"], 1, "mysql: unsupported database"),
        (["run", "--name", "../up"], 2, "'../up' cannot name a folder"),
        (["run", "--name", "é" * 123], 2, "a name of 246 bytes is too long for a folder; use at most 245"),
        (["enqueue", "cnn", "--name", "studies.db"], 2, "'studies.db' is reserved for a file"),
        (["run", "--name", "studies.db-wal"], 2, "is reserved for a file"),
        (["run", "--name", "uploads"], 2, "is reserved for a file"),
        (["run", "--name", "a\u200cb"], 2, r"cannot name a study; remove the unprintable U+200C"),
        (["run", "--name", "a\tb"], 2, "remove the unprintable U+0009"),
        (["run", "--name", "a\n"], 2, "remove the unprintable U+000A"),
        (["run", "--name", "a.finalists"], 2, "is reserved for the finalists of another study"),
        (["run", "--device", "cuda"], 2, "--device cuda: not available on this machine"),
        (["status"], 1, "no database studies/studies.db; start a search"),
        (["status", "--watch", "mine"], 2, "put the study first: status mine --watch"),
        (["run", "--output", "/dev/null/x"], 1, "/dev/null/x: Not a directory; name another place"),
        (["report"], 1, "no database"),
        (["dashboard"], 1, "no database"),
        (["train", "--epochs", "0"], 2, "--epochs: should be greater than or equal to 1, not 0"),
        (["train", "--dropout", "1.5"], 2, "--dropout: should be less than 1, not 1.5"),
        (["train", "--kernel-size", "16"], 2, "--kernel-size: should be less than or equal to 15, not 16"),
        (["train", "--optimizer", "lion"], 2, "'lion' is not one of"),
        (
            ["train", "--augmentation-kind", "crop+a_blur"],
            2,
            "--augmentation-kind: 'a_blur' is not an augmentation; write",
        ),
        (["train", "--augmentation-kind", "both+flip"], 2, "flip appears twice; keep one"),
        (["evaluate", "absent.pth"], 1, "absent.pth: No such file"),
        (["data", "--data-dir", "."], 1, "train-images-idx3-ubyte.gz not found; name the folder"),
    ],
)
def test_bad_input_is_a_one_line_error(invoke: Command, arguments: list[str], exit_code: int, message: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        arguments = ["run", "--device", "cuda9"]
        message = "is not one of"
    line = one_line(invoke(*arguments), exit_code)
    assert message in line
    assert "hunter2" not in line


def test_train_prints_the_write_ups_lines_and_saves_a_checkpoint(
    command: Command, invoke: Command, tmp_path: Path
) -> None:
    arguments = ["--architecture", "simple", "--filters", "4", "--epochs", "2", "--seed", "3"]
    result = command("train", *arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for line in lines[:2]:
        assert re.fullmatch(r"Test set: Average loss: \d\.\d{4}, Accuracy: \d+/300 \(\d+%\)", line)
    assert all(name in result.stdout for name in CLASSES)
    saved = checkpoint.load(tmp_path / "digits_cnn_full.pth")
    assert (saved.seed, saved.hyperparameters.filters, len(saved.history)) == (3, 4, 2)

    scored = invoke("evaluate", "digits_cnn_full.pth")
    assert scored.stdout.splitlines()[0] == lines[1]
    assert "true / predicted" in scored.stdout
    values = json.loads(invoke("evaluate", "digits_cnn_full.pth", "--json").stdout)
    assert (values["correct"], values["total"], values["score_on"]) == (saved.history[-1].correct, 300, "test")


@pytest.mark.parametrize(("kind", "tta", "recorded"), [("flip", "auto", "mirror"), ("flip", "none", "none")])
def test_train_and_evaluate_score_alike_with_and_without_tta(
    invoke: Command, tmp_path: Path, kind: str, tta: str, recorded: str
) -> None:
    network = ("--architecture", "simple", "--epochs", "1", "--augmentation-kind", kind, "--augmentation", "1")
    trained = invoke("train", *network, "--tta", tta, "--save", "net.pth")
    assert trained.returncode == 0, trained.stderr
    assert checkpoint.load(tmp_path / "net.pth").tta == recorded
    scores = json.loads(invoke("evaluate", "net.pth", "--json").stdout)
    assert f"Average loss: {scores['loss']:.4f}, Accuracy: {scores['correct']}/{scores['total']}" in trained.stdout
    table = invoke("evaluate", "net.pth").stdout.partition("\n\n")[2].partition("\n\n")[0]
    assert table in trained.stdout  # the final classification report uses the same predictions


def test_train_takes_every_hyperparameter(invoke: Command, tmp_path: Path) -> None:
    values: dict[str, Any] = {"architecture": "cnn", "epochs": 1, "optimizer": "sgd", "learning_rate": 0.05}
    values |= {"momentum": 0.8, "batch_size": 32, "filters": 2, "blocks": 1, "kernel_size": 4, "residual": True}
    values |= {"hidden": 9, "activation": "silu", "dropout": 0.2, "weight_decay": 0.001, "l1": 0.0001}
    values |= {"label_smoothing": 0.1, "augmentation": 0.3, "augmentation_kind": "crop+flip+erasing"}
    arguments = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    arguments.remove("True")  # --residual is a flag
    assert invoke("train", *arguments).returncode == 0
    saved = checkpoint.load(tmp_path / "digits_cnn_full.pth").hyperparameters
    assert saved == Hyperparameters(**values)
    assert (
        saved.model_dump(exclude_defaults=True).keys() | {"architecture", "network"}
        == Hyperparameters.model_fields.keys()
    )


def test_scoring_on_validation_is_shown_in_each_output(invoke: Command, study_file: Path) -> None:
    result = invoke("run", "tiny.toml", "--trials", "1", "--workers", "1", "--score-on", "validation")
    assert "validation accuracy" in result.stdout
    assert "on validation" in invoke("best", "tiny").stdout
    line = invoke("train", "--architecture", "simple", "--epochs", "1", "--score-on", "validation").stdout
    assert re.match(r"Validation set: .*/100 ", line)


def test_a_foreign_checkpoint_is_refused(invoke: Command, tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(2)}, tmp_path / "foreign.pth")
    assert "foreign.pth: not an fmnist-search checkpoint" in one_line(invoke("evaluate", "foreign.pth"), 1)


def test_data_prints_what_it_found(command: Command, tiny_folder: Path) -> None:
    assert command("data").stdout == (
        f"data set 'digits': 600 training and 300 test images, verified, in {tiny_folder}\n"
    )


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_help_with_a_valid_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"], prog_name="fmnist-search")
    assert result.exit_code == 0
    summary, *_ = result.output.split("\n\n")[1:]
    assert summary.strip()
    examples = re.findall(r"^    fmnist-search (.*)$", result.output, re.MULTILINE)
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example.split(" > ")[0])
        assert program == name
        main.commands[name].make_context(name, arguments)  # raises a usage error for invalid arguments


def takes_a_study(command: click.Command) -> bool:
    return "STUDY" in command.get_usage(click.Context(command))


def test_help_gives_each_hyperparameter_its_meaning_range_and_default() -> None:
    text = " ".join(CliRunner().invoke(main, ["train", "--help"]).output.split())
    options = text.partition("Options:")[2]
    fields = Hyperparameters.model_json_schema()["properties"]
    for name, field in fields.items():
        if name == "network":
            continue
        _, found, rest = options.partition(f" --{name.replace('_', '-')} ")
        assert found, name
        explained = rest.partition(" --")[0]
        assert field["description"][1:] in explained
        default = "off" if field["default"] is False else field["default"]
        assert f"[default: {default}" in explained
        for bound in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            assert bound not in field or re.search(rf"[; ]{field[bound]:g}\b", explained.rpartition("[")[2]), name


@pytest.mark.parametrize("name", [name for name, command in main.commands.items() if takes_a_study(command)])
def test_help_names_the_default_study(name: str) -> None:
    assert "[default: cnn]" in CliRunner().invoke(main, [name, "--help"]).output


def test_studies_lists_those_of_the_database_too(invoke: Command, study_file: Path) -> None:
    listed = json.loads(invoke("studies", "--json").stdout)
    assert {entry["name"] for entry in listed["included"]} >= {"cnn", "epochs"}
    assert listed["studies"] == []
    assert "No studies yet in studies/studies.db" in invoke("studies").stdout
    study_file.write_text(STUDY.replace("epochs = 2", "epochs = 1").replace("finalists = 0", "finalists = 1"))
    invoke("enqueue", "tiny.toml", "--name", "waiting", "--trials", "3")
    invoke("run", "tiny.toml", "--trials", "2", "--workers", "1", "--quiet")
    summary = json.loads(invoke("status", "tiny", "--json").stdout)
    finished, waiting = json.loads(invoke("studies", "--json").stdout)["studies"]
    assert finished == {
        "study": "tiny",
        "state": "finished",
        "finished": 2,
        "goal": 2,
        "best": summary["best"]["value"],
        "winner": summary["winner"]["mean"],
    }
    assert (waiting["study"], waiting["state"], waiting["goal"]) == ("waiting", "unfinished", 3)
    text = invoke("studies").stdout
    assert re.search(r"^tiny +finished +2 of 2 +[\d.]+ % +[\d.]+ %", text, re.MULTILINE)
    assert "tiny.finalists" not in text
    optuna.create_study(study_name="foreign", storage=open_storage(default_url(study_file.parent / "studies"), "write"))
    assert re.search(r"^foreign +of another program", invoke("studies").stdout, re.MULTILINE)
    assert invoke("studies", "--storage", "nonsense").returncode == 1


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_no_heavy_module(arguments: list[str]) -> None:
    program = (
        "import sys; from search.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print('loaded', *{'torch', 'optuna', 'plotly', 'sklearn', 'numpy', 'pydantic'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded"


def test_status_does_not_import_torch(invoke: Command, tmp_path: Path) -> None:
    invoke("enqueue", "cnn", "--trials", "1")
    program = (
        "import sys; from search.cli import main; main(['status', 'cnn'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    call = [sys.executable, "-c", program]
    result = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 waiting" in result.stdout
