"""Three searches of one space on the same cores: stock Optuna, random search, ours.

    .venv/bin/python -m benchmarks.search          # two to three hours on two cores
    .venv/bin/python -m benchmarks.search --quick  # 8 trials on a twelfth of the images, some minutes
    .venv/bin/python -m benchmarks.search --only ours --only random

    stock    the examples' way: TPE, MedianPruner, `study.optimize` with as many jobs as cores, which are
             threads of one process, and the loop of benchmarks/stock.py; accuracy is reported after each epoch
    random   `fmnist-search run` with its sampler random and its pruner none: our training, nothing else
    ours     `fmnist-search run` as it is; its finalists, which the others do not have, have their own line

Each begins with the default configuration of studies/cnn.toml and searches its space. At the end
each trains its best configuration (ours: the winner of its finalists) again with five seeds
that nobody used; these trainings are not part of its time. What is compared is the test
accuracy of those, and the time of the searches, of ours without and with its finalists.

What is finished is in the output folder, and a benchmark that was interrupted goes on from
there: with the next search, or with the trials of `stock` that are missing. Time in between
does not count. The studies of `ours` and `random` stay there too, for `fmnist-search report`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_ind

from benchmarks import stock
from benchmarks.machine import machine
from benchmarks.outcome import Ended, Results, Searched, figure, reached, value_of
from benchmarks.stock_search import stock_search
from fmnist import data as fashion
from fmnist.data import Splits
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training
from search.database.connection import open_storage
from search.database.url import default_url
from search.results.intervals import estimate
from search.run.local import cores
from search.study import definition
from search.study.record import FINISHED, history_of
from search.study.store import load_study

ROOT = Path(__file__).resolve().parent.parent
CORES = cores()
SEARCHES = ("ours", "random", "stock")
FRESH = range(1_000_000, 1_000_005)  # seeds that no trial has: those are derived, of 63 bits
DEFINED = definition.read(definition.locate("cnn"))
BAR, GOAL, MARGIN = 8, 15, -0.3  # times stock; and points that we may be below it, at the most
MINUTES = 25  # that ours may take, finalists included
MARKS = (0.92, 0.925, 0.93)  # accuracies, for the table of when they were reached


def our_trials(study: optuna.Study) -> list[Ended]:
    """By the time of their end."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    began = min(trial.datetime_start for trial in trials)  # type: ignore[type-var]
    ended = [
        Ended(
            at=(trial.datetime_complete - began).total_seconds(),  # type: ignore[operator]
            epochs=max((epoch.epoch for epoch in history_of(trial)), default=0.0),
            value=value_of(trial),
        )
        for trial in trials
    ]
    return sorted(ended, key=lambda trial: trial.at)


def our_search(name: str, folder: Path, data: Path, trials: int) -> Searched:
    """`fmnist-search run`, as a user starts it; then, of ours, `finalists`. What was in the folder is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    where = ["--output", str(folder), "--data-dir", str(data), "--device", "cpu"]
    plain = ["--sampler", "random", "--pruner", "none"] if name == "random" else []
    run = ["run", "cnn", "--name", name, "--trials", str(trials), "--finalists", "0", *plain, *where]
    began = time.perf_counter()
    command(*run)
    seconds = time.perf_counter() - began
    study = load_study(open_storage(default_url(folder)), name)
    searched = Searched(name, seconds, our_trials(study), study.best_params)
    if name == "ours":
        began = time.perf_counter()
        command("finalists", name, *where)
        searched.finalists_seconds = time.perf_counter() - began
        winner = json.loads(command("finalists", name, "--json", *where, quiet=True))["finalists"][0]
        searched.best = winner["again"]["params"]
    return searched


def command(*arguments: str, quiet: bool = False) -> str:
    """Run fmnist-search; what it prints goes to the terminal, or is returned."""
    call = [sys.executable, "-m", "search", *arguments]
    done = subprocess.run(call, check=True, text=True, stdout=subprocess.PIPE if quiet else None, cwd=ROOT)
    return done.stdout or ""


def splits_of(data: Path) -> Splits:
    return fashion.split(fashion.load(data), "test")


def train_again(task: tuple[str, dict[str, Any], int, Path]) -> float:
    """Test accuracy of a configuration with a fresh seed, by the search's own loop."""
    name, best, seed, folder = task
    torch.set_num_threads(1)
    splits = splits_of(folder)
    hyperparameters: Hyperparameters = DEFINED.defaults.model_copy(update=best)
    if name == "stock":
        *_, last = stock.epochs(hyperparameters, splits, seed)
    else:
        *_, last = (metrics.accuracy for metrics in Training(hyperparameters, seed).epochs(splits))
    return last


def table(searches: list[Searched]) -> Table:
    made = Table(title=f"one space, {CORES} cores")
    for column in ("search", "wall time", "trials", "complete", "epochs", "best trial", "re-trained, 5 seeds"):
        made.add_column(column, justify="left" if column == "search" else "right")
    for each in searches:
        again = estimate(each.retrained)
        values = [trial.value for trial in each.trials if trial.value is not None]
        made.add_row(
            each.name,
            clock(each.seconds),
            str(len(each.trials)),
            str(len(values)),
            f"{each.epochs:.1f}",
            f"{max(values):.2%}",
            f"{again.mean:.2%} ({again.low:.2%}-{again.high:.2%})",
        )
        if each.finalists_seconds is not None:
            made.add_row("  its finalists", clock(each.finalists_seconds), *[""] * 5)
    return made


def marks_table(searches: list[Searched]) -> Table:
    """When a trial first reached each mark."""
    made = Table(title="first trial at least as good: wall time, epochs trained by then")
    made.add_column("search")
    for mark in MARKS:
        made.add_column(f"{mark:.1%}", justify="right")
    for each in searches:
        found = [reached(each.trials, mark) for mark in MARKS]
        made.add_row(each.name, *(f"{clock(one[0])}, {one[1]:.1f}" if one else "never" for one in found))
    return made


def clock(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def verdict(searches: dict[str, Searched]) -> list[str]:
    """What ours is, by each of the others."""
    ours, lines = searches["ours"], []
    assert ours.finalists_seconds is not None
    whole = ours.seconds + ours.finalists_seconds
    for name, other in searches.items():
        if name != "ours":
            gain = estimate(ours.retrained).mean - estimate(other.retrained).mean
            low, high = ttest_ind(ours.retrained, other.retrained, equal_var=False).confidence_interval()
            lines.append(
                f"ours is {other.seconds / ours.seconds:.1f} times as fast as {name}, with its finalists "
                f"{other.seconds / whole:.1f} times; its re-trained accuracy less that of {name}: "
                f"{100 * gain:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
            )
    lines.append(f"ours with its finalists took {clock(whole)}; it may take {MINUTES} min")
    if "stock" in searches:
        lines.append(f"the bar: {BAR} times stock, the difference's lower end above {MARGIN}; the goal: {GOAL} times")
    return lines


def run(results: Results, options: argparse.Namespace, console: Console) -> None:
    """Make what is missing of the searches and the trainings of their best configurations."""
    whole = fashion.load()
    with tempfile.TemporaryDirectory() as temporary:
        data = whole.folder
        if options.quick:
            data = Path(temporary) / "data"
            fashion.write(data, *(part[torch.arange(len(part) // 12)] for part in (whole.train, whole.test)))
        for name in options.only or SEARCHES:
            if name not in results.searches:
                results.searches[name] = (
                    stock_search(DEFINED, splits_of(data), options.trials, options.output / "stock.db", console)
                    if name == "stock"
                    else our_search(name, options.output / name, data, options.trials)
                )
                results.save()
            searched = results.searches[name]
            tasks = [(name, searched.best, seed, data) for seed in FRESH[len(searched.retrained) :]]
            with get_context("spawn").Pool(CORES) as pool:
                for accuracy in pool.imap(train_again, tasks):
                    searched.retrained.append(accuracy)
                    results.save()
            console.print(table([searched]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 trials on a twelfth of the images")
    parser.add_argument("--trials", type=int, help="of each search (default: 50)")
    parser.add_argument("--only", choices=SEARCHES, action="append", help="default: all three")
    parser.add_argument("--output", type=Path, help="of search.json and search.html (default: build/search)")
    options = parser.parse_args()
    options.trials = options.trials or (8 if options.quick else 50)
    options.output = options.output or ROOT / "build" / ("search-quick" if options.quick else "search")
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    about = machine("torch", "torchvision", "optuna")
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    what = {"trials": options.trials, "quick": options.quick, "study": DEFINED.identity()}
    results = Results(options.output / "search.json", {**about, **what})
    run(results, options, console)
    searches = results.searches
    console.print(table(list(searches.values())))
    console.print(marks_table(list(searches.values())))
    if "ours" in searches:
        console.print("\n".join(verdict(searches)))
    drawn = options.output / "search.html"
    figure(list(searches.values())).write_html(drawn, include_plotlyjs=True)
    console.print(f"Figure: {drawn}")


if __name__ == "__main__":
    main()
