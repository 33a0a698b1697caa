"""What pruners and samplers would have done, replayed on recorded learning curves.

    .venv/bin/python -m benchmarks.replay            # some minutes
    .venv/bin/python -m benchmarks.replay --orders 4 # a smoke run: the numbers mean little

A replayed search is one of 50 trials by two workers on benchmarks/curves.jsonl, with Optuna's
own study, pruners and TPE in memory, and a clock that moves by the seconds that each report
took. Trial 0 is the default configuration. A trial's epochs are drawn from the default
study's range. Random search takes the curves in a random order, another one in each
repetition; TPE's proposal is taken for the nearest curve that has not been used.

Reported, over all orders:

    wrongly pruned  of those among the eventual best 10 % of a search's trials (by the accuracy at
                    their last epoch) the share that was pruned; with the 95 % bootstrap interval
                    over configurations, as an order tells nothing about others than these
    saved           of the training seconds of all trials, the share that pruning saved
    complete        trials that came to their end
    regret          points from the best complete trial to the best that any of these 50 would have been
    found           accuracy of the best complete trial
"""

import argparse
import heapq
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PercentilePruner
from optuna.pruners import SuccessiveHalvingPruner as Halving
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import Trial, TrialState
from rich.console import Console
from rich.table import Table

from benchmarks.curves import DEFINED, TRAINED
from search.run.local import cores
from search.study import space
from search.study.record import STEPS_PER_EPOCH
from search.worker.sampling import SLACK, SlackPruner

ROOT = Path(__file__).resolve().parent.parent
TRIALS, WORKERS, BEST_SHARE = 50, 2, 0.1
SPACE: dict[str, BaseDistribution] = space.distributions(DEFINED)
LONGEST = DEFINED.longest_epochs() * STEPS_PER_EPOCH
QUARTER = STEPS_PER_EPOCH // 4

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "none": NopPruner,
    **{f"slack {slack}": partial(SlackPruner, slack, STEPS_PER_EPOCH) for slack in (0.03, SLACK, 0.1, 0.15)},
    "median": partial(MedianPruner, n_startup_trials=5),
    "percentile 25": partial(PercentilePruner, 25.0, n_startup_trials=5),
    "percentile 50, from epoch 1": partial(MedianPruner, n_startup_trials=5, n_warmup_steps=STEPS_PER_EPOCH),
    "hyperband 3": partial(HyperbandPruner, QUARTER, LONGEST, 3),
    **{
        f"halving {factor}, from epoch {first / STEPS_PER_EPOCH:g}": partial(Halving, first, factor)
        for factor in (2, 3, 4)
        for first in (QUARTER, 2 * QUARTER, STEPS_PER_EPOCH)
    },
}


@dataclass(frozen=True)
class Curve:
    """A recorded training; seconds: since the report before."""

    index: int
    parameters: dict[str, Any]
    steps: list[int]
    accuracies: list[float]
    seconds: list[float]

    def reports(self, epochs: int) -> int:
        """How many reports a training of so many epochs makes."""
        return self.steps.index(epochs * STEPS_PER_EPOCH) + 1


@dataclass
class Replayed:
    """A trial of a replayed search: how far it came."""

    curve: Curve
    trial: Trial
    epochs: int
    done: int = 0

    @property
    def complete(self) -> bool:
        return self.done == self.curve.reports(self.epochs)

    @property
    def potential(self) -> float:
        """The accuracy it has, or would have had, at its last epoch."""
        return self.curve.accuracies[self.curve.reports(self.epochs) - 1]

    @property
    def spent(self) -> float:
        return sum(self.curve.seconds[: self.done])

    @property
    def whole(self) -> float:
        return sum(self.curve.seconds[: self.curve.reports(self.epochs)])


@dataclass(frozen=True)
class Result:
    """Numbers of one replayed search; mistakes: (configuration, whether pruned) of its eventual best."""

    mistakes: list[tuple[int, bool]]
    saved: float
    complete: int
    regret: float
    found: float
    clock: float


def read(file: Path) -> list[Curve]:
    """The recorded curves, the default configuration's first.

    Raises:
        SystemExit: they are of another default configuration or space than the default study's, or too few.
    """
    header, *lines = map(json.loads, file.read_text().splitlines())
    if header["study"] != TRAINED:
        raise SystemExit(f"{file} is of another study than studies/cnn.toml; record it again with benchmarks.curves")
    curves = sorted((Curve(**line) for line in lines), key=lambda curve: curve.index)
    if len(curves) <= TRIALS or curves[0].index != 0:
        raise SystemExit(f"{file} has not enough curves; go on with benchmarks.curves")
    return curves


class Proposals:
    """Which curve the next trial is, and with how many epochs."""

    def __init__(self, curves: list[Curve], sampler: str, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.default, *rest = curves
        self.unused = [rest[i] for i in self.random.permutation(len(rest))]
        self.tpe = TPESampler(seed=seed) if sampler == "tpe" else None

    def next(self, study: optuna.Study) -> tuple[Curve, int]:
        if not study.get_trials(deepcopy=False):
            return self.default, DEFINED.defaults.epochs
        epochs = int(self.random.integers(SPACE["epochs"].low, SPACE["epochs"].high + 1))  # type: ignore[attr-defined]
        if self.tpe is None:
            return self.unused.pop(), epochs
        trial = study.ask()  # only to have a proposal: its parameters are those of no curve
        proposed = {name: trial._suggest(name, distribution) for name, distribution in SPACE.items()}
        study.tell(trial, state=TrialState.FAIL)
        nearest = min(range(len(self.unused)), key=lambda i: distance(proposed, self.unused[i].parameters))
        return self.unused.pop(nearest), proposed["epochs"]


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Between two configurations, each range taken as 1, epochs left out."""
    total = 0.0
    for name, distribution in SPACE.items():
        if name != "epochs":
            low, high, *values = distribution.low, distribution.high, first[name], second[name]  # type: ignore[attr-defined]
            if distribution.log:  # type: ignore[attr-defined]
                low, high, *values = np.log([low, high, *values])
            total += float((values[0] - values[1]) / (high - low)) ** 2
    return total


def search(curves: list[Curve], pruner: str, sampler: str, seed: int) -> Result:
    """Replay one search."""
    proposals = Proposals(curves, sampler, seed)
    study = optuna.create_study(
        direction="maximize", pruner=PRUNERS[pruner](), sampler=proposals.tpe or RandomSampler(seed=seed)
    )
    clock, turn = 0.0, itertools.count()
    trials: list[Replayed] = []
    waiting: list[tuple[float, int, Replayed]] = []  # by the time of the next report

    def begin(now: float) -> None:
        if len(trials) < TRIALS:
            curve, epochs = proposals.next(study)
            study.enqueue_trial({**curve.parameters, "epochs": epochs})
            trial = study.ask(SPACE)
            trials.append(Replayed(curve, trial, epochs))
            heapq.heappush(waiting, (now + curve.seconds[0], next(turn), trials[-1]))

    for _ in range(WORKERS):
        begin(0.0)
    while waiting:
        clock, _, each = heapq.heappop(waiting)
        each.trial.report(each.curve.accuracies[each.done], each.curve.steps[each.done])
        each.done += 1
        pruned = each.trial.should_prune()
        if each.complete:
            study.tell(each.trial, each.potential)
            begin(clock)
        elif pruned:
            study.tell(each.trial, state=TrialState.PRUNED)
            begin(clock)
        else:
            heapq.heappush(waiting, (clock + each.curve.seconds[each.done], next(turn), each))
    return result(trials, clock)


def result(trials: list[Replayed], clock: float) -> Result:
    ranked = sorted(trials, key=lambda each: -each.potential)
    found = max((each.potential for each in trials if each.complete), default=0.0)
    return Result(
        mistakes=[(each.curve.index, not each.complete) for each in ranked[: round(BEST_SHARE * len(ranked))]],
        saved=1 - sum(each.spent for each in trials) / sum(each.whole for each in trials),
        complete=sum(each.complete for each in trials),
        regret=100 * (ranked[0].potential - found),
        found=found,
        clock=clock,
    )


def mistakes(results: list[Result]) -> tuple[float, float, float]:
    """The share that was wrongly pruned, and its bootstrap interval over configurations (Efron, 1979)."""
    counts: dict[int, np.ndarray] = {}
    for index, pruned in (pair for each in results for pair in each.mistakes):
        counts[index] = counts.get(index, np.zeros(2)) + np.array([pruned, 1])
    table = np.array(list(counts.values()))
    random = np.random.default_rng(0)
    drawn = table[random.integers(len(table), size=(2000, len(table)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(table[:, 0].sum() / table[:, 1].sum()), float(low), float(high)


def summary(pruner: str, sampler: str, results: list[Result]) -> dict[str, Any]:
    share, low, high = mistakes(results)
    averages = {
        name: fmean(getattr(each, name) for each in results) for name in ("saved", "complete", "regret", "found")
    }
    return {
        "pruner": pruner,
        "sampler": sampler,
        "orders": len(results),
        "wrongly_pruned": [share, low, high],
        "clock": fmean(each.clock for each in results),
        **averages,
    }


def task(arguments: tuple[list[Curve], str, str, int]) -> Result:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return search(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=200, help="replayed searches of each row (default: 200)")
    parser.add_argument("--sampler", choices=("random", "tpe"), action="append", help="default: random and tpe")
    parser.add_argument("--pruner", choices=PRUNERS, action="append", help="default: all")
    parser.add_argument("--curves", type=Path, default=Path(__file__).with_name("curves.jsonl"))
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "replay.json", help="default: build/replay.json")
    options = parser.parse_args()
    curves = read(options.curves)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{options.orders} replayed searches of {TRIALS} trials on {len(curves)} curves")
    for column in ("sampler", "pruner", "wrongly pruned", "saved", "complete", "regret", "found"):
        table.add_column(column, justify="left" if column in ("sampler", "pruner") else "right")
    rows = []
    with get_context("spawn").Pool(cores()) as pool:
        for sampler, pruner in itertools.product(options.sampler or ("random", "tpe"), options.pruner or PRUNERS):
            tasks = [(curves, pruner, sampler, seed) for seed in range(options.orders)]
            rows.append(row := summary(pruner, sampler, pool.map(task, tasks, chunksize=2)))
            share, low, high = row["wrongly_pruned"]
            table.add_row(
                sampler,
                pruner,
                f"{share:.1%} ({low:.1%}-{high:.1%})",
                f"{row['saved']:.0%}",
                f"{row['complete']:.1f}",
                f"{row['regret']:.2f}",
                f"{row['found']:.2%}",
            )
    console.print(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
