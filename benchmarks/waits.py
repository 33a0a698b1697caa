"""Waiting times other than training, and a worker's memory. Linux only.

    .venv/bin/python -m benchmarks.waits          # about 8 minutes on two cores
    .venv/bin/python -m benchmarks.waits --quick  # smoke test; the numbers mean little

Wall time of commands in seconds, median of several repeats, with our goals: `--help`;
`status` of a study with 10,000 trials; `report` of a study with 1,000 trials (SQLite; trials
of benchmarks/storage.py, of which two in three are pruned). Also the time to load
Fashion-MNIST, the time from `run` to the first training step, and a worker's memory: its
peak up to a trial's second report, and its growth over 100 short trials.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import torch
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.storage import make
from fmnist import data as fashion
from search.database.connection import open_storage
from search.database.url import StorageError, default_url
from search.study import definition
from search.study.places import StudyError
from search.study.record import ATTEMPTS, FINISHED, history_of
from search.study.store import load_study

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"--help": 0.3, "status": 0.7, "report": 15.0, "data set": 1.0, "first step": 8.0}  # seconds
LOAD = (
    "import time; from fmnist import data; began = time.perf_counter(); data.load(); print(time.perf_counter() - began)"
)
SHORT = """
sampler = "random"
pruner = "none"
finalists = 0
[defaults]
epochs = 1
filters = 8
[space]
learning_rate = { low = 0.0005, high = 0.002, log = true }
filters = { low = 8, high = 32, step = 8 }
"""


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("fmnist-search")), *arguments]


def seconds(repeats: int, *arguments: str) -> float:
    """The median wall time of a command."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command(*arguments), check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return median(times)


def loading(repeats: int) -> float:
    """The median time to read and verify Fashion-MNIST from the file cache."""
    call = [sys.executable, "-c", LOAD]
    return median(float(subprocess.check_output(call, text=True, cwd=ROOT)) for _ in range(repeats))


def on_study(folder: Path, trials: int, repeats: int, name: str) -> float:
    """The median wall time of a command on a study with that many trials."""
    make(default_url(folder), folder, definition.read(ROOT / "studies" / "cnn.toml"), trials, 0, 0)
    return seconds(repeats, name, "s", "--output", str(folder))


def search(folder: Path, *arguments: str) -> Iterator[optuna.Study]:
    """Run a study named "s"; yields it repeatedly until it ends, and ends it when the iterator is closed."""
    call = command("run", *arguments, "--name", "s", "--output", str(folder), "--workers", "1", "--quiet")
    running = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    study = None
    try:
        while running.poll() is None:
            time.sleep(0.02)
            try:
                study = study or load_study(open_storage(default_url(folder)), "s")
            except (StorageError, StudyError):
                continue  # not created yet
            yield study
        if running.returncode:
            raise SystemExit(f"`{' '.join(call)}` failed")
    finally:
        running.terminate()
        running.wait()


def kilobytes(process: int, key: str) -> int:
    """VmHWM, a process's peak resident memory, or VmRSS, its current resident memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))


def first_step(folder: Path) -> tuple[float, float]:
    """Seconds from `run` to the first training step, and the worker's peak memory in MB up to its second report."""
    began, step = time.perf_counter(), 0.0
    for study in search(folder, "cnn", "--trials", "1"):
        trial = study.get_trials(deepcopy=False)[:1]
        history = history_of(trial[0]) if trial else []
        if history and not step:
            step = time.perf_counter() - began - history[0].seconds
        if len(history) > 1:
            return step, kilobytes(trial[0].user_attrs[ATTEMPTS][-1]["pid"], "VmHWM") / 1024
    raise AssertionError("the trial ended before its second report")


def growth(folder: Path, trials: int, images: int) -> tuple[float, float]:
    """A worker's memory in MB after a tenth of its trials, and after all but the last."""
    data = fashion.load()
    fashion.write(folder / "data", *(part[torch.arange(images)] for part in (data.train, data.test)))
    study_file = folder / "short.toml"
    study_file.write_text(SHORT)
    resident: dict[int, int] = {}
    for study in search(folder, str(study_file), "--trials", str(trials), "--data-dir", str(folder / "data")):
        ended = len(study.get_trials(deepcopy=False, states=FINISHED))
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if ended not in resident and running:
            try:
                resident[ended] = kilobytes(running[0].user_attrs[ATTEMPTS][-1]["pid"], "VmRSS")
            except FileNotFoundError:
                continue  # the worker has just ended
    early, late = (choose(number for number in resident if trials // 10 <= number < trials) for choose in (min, max))
    return resident[early] / 1024, resident[late] / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "waits.json", help="default: build/waits.json")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    about = machine("torch", "optuna")
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), highlight=False)
    large, small, repeats = (100, 50, 1) if options.quick else (10_000, 1_000, 5)
    with tempfile.TemporaryDirectory() as temporary:
        place = [Path(temporary) / str(number) for number in range(4)]
        for folder in place:
            folder.mkdir()
        times = {
            "--help": seconds(repeats, "--help"),
            "status": on_study(place[0], large, repeats, "status"),
            "report": on_study(place[1], small, min(repeats, 3), "report"),
            "data set": loading(repeats),
        }
        times["first step"], peak = first_step(place[2])
        early, late = growth(place[3], 10 if options.quick else 100, 600 if options.quick else 10_000)
    table = Table(title="Waiting times")
    for column in ("for", "seconds", "goal: under"):
        table.add_column(column, justify="left" if column == "for" else "right")
    for name, each in times.items():
        table.add_row(name, f"{each:.2f}", f"{GOALS[name]:g}")
    console.print(table)
    console.print(f"A worker's memory: peak {peak:.0f} MB; {early:.0f} MB after a tenth of its short trials,")
    console.print(f"{late:.0f} MB near their end", highlight=False)
    record: dict[str, Any] = {"machine": about, "seconds": times, "peak": peak, "resident": [early, late]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
