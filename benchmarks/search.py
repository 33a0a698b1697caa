"""Searches of the default study's space on the same cores: ours, parts of ours, and stock Optuna.

    .venv/bin/python -m benchmarks.search          # many hours on two cores, most of them for `stock`
    .venv/bin/python -m benchmarks.search --quick  # 8 trials on a twelfth of the images, some minutes
    .venv/bin/python -m benchmarks.search --only ours --only random

    ours, ours-1, ours-2  `fmnist-search run` with study seeds 0, 1 and 2, and its finalists, timed separately
    median                our training loop with Optuna's TPE and MedianPruner: what is left is what the search adds
    random                our training loop with random search and no pruner: what is left is our training alone
    stock                 as in Optuna's examples: TPE, MedianPruner and `study.optimize` with one thread per core,
                          the loop of benchmarks/stock.py, accuracy reported after each epoch

Each search starts with the default configuration of studies/cnn.toml. Afterwards each one's best configuration
(for ours, the finalists' winner) is trained again with five fresh seeds, outside its time. The results are the test
accuracies of those, the time of each search, and when each search first had a configuration as good as
stock's best: the trials that were the best so far are trained again with three fresh seeds, in order, until one's mean
reaches the mean of stock's.

Finished parts are kept in the output folder, and an interrupted benchmark continues with the next search, or
with the missing trials of `stock`; the time in between does not count. The studies are kept there too, for
`fmnist-search report`.
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
from benchmarks.outcome import Ended, Results, Searched, figure, reached, records, value_of
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
OURS = ("ours", "ours-1", "ours-2")
OPTIONS = {  # of `fmnist-search run`
    "ours": [],
    "ours-1": ["--seed", "1"],
    "ours-2": ["--seed", "2"],
    "median": ["--sampler", "tpe", "--pruner", "median"],
    "random": ["--sampler", "random", "--pruner", "none"],
}
SEARCHES = (*OPTIONS, "stock")
FRESH = range(1_000_000, 1_000_005)  # seeds that no trial has: those are derived and have 63 bits
FRESH_OF_RECORDS = FRESH[:3]
DEFINED = definition.read(definition.locate("cnn"))
BAR, GOAL = 15, 30  # times faster than stock to stock's accuracy
MINUTES = 30  # limit for ours, finalists included
MARKS = (0.925, 0.93, 0.935)  # accuracies in the table of when each was reached


def our_trials(study: optuna.Study) -> list[Ended]:
    """By the time of their end."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    began = min(trial.datetime_start for trial in trials)  # type: ignore[type-var]
    ended = [
        Ended(
            at=(trial.datetime_complete - began).total_seconds(),  # type: ignore[operator]
            epochs=max((epoch.epoch for epoch in history_of(trial)), default=0.0),
            value=value_of(trial),
            params=trial.params,
        )
        for trial in trials
    ]
    return sorted(ended, key=lambda trial: trial.at)


def our_search(name: str, folder: Path, data: Path, trials: int) -> Searched:
    """`fmnist-search run` as a user starts it, followed by `finalists` for ours. Clears the folder first."""
    shutil.rmtree(folder, ignore_errors=True)
    where = ["--output", str(folder), "--data-dir", str(data), "--device", "cpu"]
    run = ["run", "cnn", "--name", name, "--trials", str(trials), "--finalists", "0", *OPTIONS[name], *where]
    began = time.perf_counter()
    command(*run)
    seconds = time.perf_counter() - began
    study = load_study(open_storage(default_url(folder)), name)
    searched = Searched(name, seconds, our_trials(study), study.best_params)
    if name in OURS:
        began = time.perf_counter()
        command("finalists", name, *where)
        searched.finalists_seconds = time.perf_counter() - began
        winner = json.loads(command("finalists", name, "--json", *where, quiet=True))["finalists"][0]
        searched.best = winner["retrained"]["params"]
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
    """How ours compares with each of the others, and with the bars."""
    lines = []
    for ours in (searches[name] for name in OURS if name in searches):
        assert ours.finalists_seconds is not None
        whole = ours.seconds + ours.finalists_seconds
        lines.append(f"{ours.name} with its finalists took {clock(whole)} (limit: {MINUTES} min)")
        for other in (searches[name] for name in searches if name not in OURS):
            gain = estimate(ours.retrained).mean - estimate(other.retrained).mean
            low, high = ttest_ind(ours.retrained, other.retrained, equal_var=False).confidence_interval()
            lines.append(
                f"{ours.name} took 1/{other.seconds / ours.seconds:.1f} of the time of {other.name}, "
                f"with its finalists 1/{other.seconds / whole:.1f}; "
                f"its re-trained accuracy is {100 * gain:+.2f} points higher ({100 * low:+.2f} to {100 * high:+.2f})"
            )
    return lines


def reached_stock(searched: Searched, stock: Searched) -> float | None:
    """Seconds until a search had a configuration as good as stock's best; None if it never had, as far as is known."""
    mark = estimate(stock.retrained).mean
    better = (trial for trial, _ in records(searched.trials) if trial.retrained)
    return next((trial.at for trial in better if estimate(trial.retrained).mean >= mark), None)


def stock_table(searches: dict[str, Searched]) -> Table:
    """When each search had a configuration as good as the best of stock."""
    stock = searches["stock"]
    mark = estimate(stock.retrained).mean
    made = Table(title=f"time to {mark:.2%}, the re-trained accuracy of stock (bar: {BAR} times faster; goal: {GOAL})")
    for column in ("search", "reached after", "stock took", "times faster"):
        made.add_column(column, justify="left" if column == "search" else "right")
    for name in (name for name in searches if name != "stock"):
        at = reached_stock(searches[name], stock)
        found = (clock(at), clock(stock.seconds), f"{stock.seconds / at:.1f}") if at else ("never", "", "")
        made.add_row(name, *found)
    return made


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
        if "stock" in results.searches:
            for name in (name for name in results.searches if name != "stock"):
                train_records_again(results, name, data)


def train_records_again(results: Results, name: str, data: Path) -> None:
    """Train the trials that were the best so far again, in order, until one is as good as stock's best."""
    searched, stock = results.searches[name], results.searches["stock"]
    with get_context("spawn").Pool(CORES) as pool:
        for trial, _ in records(searched.trials):
            if reached_stock(searched, stock) is not None:
                return
            if not trial.retrained:
                tasks = [(name, trial.params, seed, data) for seed in FRESH_OF_RECORDS]
                trial.retrained = pool.map(train_again, tasks)
                results.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 trials on a twelfth of the images")
    parser.add_argument("--trials", type=int, help="of each search (default: 50)")
    parser.add_argument("--only", choices=SEARCHES, action="append", help="default: all")
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
    if "stock" in searches:
        console.print(stock_table(searches))
    console.print("\n".join(verdict(searches)))
    drawn = options.output / "search.html"
    figure(list(searches.values())).write_html(drawn, include_plotlyjs=True)
    console.print(f"Figure: {drawn}")


if __name__ == "__main__":
    main()
