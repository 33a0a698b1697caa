"""Replays searches on recorded learning curves, to compare pruners and samplers without training.

    .venv/bin/python -m benchmarks.replay            # some minutes
    .venv/bin/python -m benchmarks.replay --orders 4 # a smoke run: the numbers mean little

Each replayed search has 50 trials and two workers. It uses the recorded curves, the workers' own sampling,
`search.queue.scheduler`, Optuna's pruners on a study in memory, and a clock that advances by the recorded seconds.
Trial 0 is the default configuration. A trial's epochs are drawn from the range in the recorded study. Random
search takes the curves in a new random order for each search; a proposal of TPE or GP selects the nearest
unused curve.

Reported, over all orders:

    lost            share of the eventual best 10 % of a search's trials (by accuracy at their last epoch) that
                    were not trained to the end; the 95 % bootstrap interval is over configurations, because
                    more orders say nothing about other configurations
    saved           share of the training seconds of all trials that was not spent
    complete        trials that were trained to their end
    regret          points between the best complete trial and the best of these 50 if all had been completed
    found           accuracy of the best complete trial
"""

import argparse
import heapq
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PercentilePruner
from optuna.pruners import SuccessiveHalvingPruner as Halving
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.table import Table

from search.queue import scheduler
from search.queue.scheduler import Progress
from search.run.local import cores
from search.study import space
from search.study.definition import StudyDefinition
from search.study.record import STEPS_PER_EPOCH
from search.worker.sampling import SLACK, SlackPruner, propose

ROOT = Path(__file__).resolve().parent.parent
TRIALS, WORKERS, BEST_SHARE = 50, 2, 0.1
EPOCH = datetime.fromtimestamp(0)  # as Optuna has it; nobody looks at it
LONGEST = 7 * STEPS_PER_EPOCH
QUARTER = STEPS_PER_EPOCH // 4

FREEZE = "freeze"  # pauses trials instead
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    FREEZE: NopPruner,
    "none": NopPruner,
    **{f"slack {slack}": partial(SlackPruner, slack, STEPS_PER_EPOCH) for slack in (0.03, SLACK, 0.1, 0.15, 0.2)},
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

    number: int
    curve: Curve
    trial: Trial
    epochs: int
    done: int = 0
    state: TrialState = TrialState.RUNNING  # PRUNED: also while it is paused, as samplers see it

    @property
    def complete(self) -> bool:
        return self.done == self.curve.reports(self.epochs)

    @property
    def potential(self) -> float:
        """The accuracy it has, or would have had, at its last epoch."""
        return self.curve.accuracies[self.curve.reports(self.epochs) - 1]

    @property
    def progress(self) -> Progress:
        last = self.done - 1
        return Progress(self.number, self.curve.steps[last], self.curve.accuracies[last], self.epochs * STEPS_PER_EPOCH)

    def seen(self, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
        """What a sampler sees of it."""
        reports = dict(zip(self.curve.steps, self.curve.accuracies[: self.done], strict=False))
        return FrozenTrial(
            number=self.number,
            trial_id=self.number,
            state=self.state,
            value=None if self.state == TrialState.RUNNING else self.curve.accuracies[self.done - 1],
            params={**self.curve.parameters, "epochs": self.epochs},
            distributions=distributions,
            intermediate_values=reports,
            datetime_start=EPOCH,
            datetime_complete=None if self.state == TrialState.RUNNING else EPOCH,
            user_attrs={},
            system_attrs={},
        )

    @property
    def spent(self) -> float:
        return sum(self.curve.seconds[: self.done])

    @property
    def whole(self) -> float:
        return sum(self.curve.seconds[: self.curve.reports(self.epochs)])


@dataclass(frozen=True)
class Result:
    """Numbers of one replayed search; mistakes: (configuration, whether lost) of its eventual best."""

    mistakes: list[tuple[int, bool]]
    saved: float
    complete: int
    regret: float
    found: float
    clock: float


@dataclass(frozen=True)
class Recorded:
    """Curves, the default configuration's first, and the study that they were recorded of."""

    definition: StudyDefinition
    curves: list[Curve]


def read(file: Path) -> Recorded:
    """The recorded curves.

    Raises:
        SystemExit: they are too few.
    """
    header, *lines = map(json.loads, file.read_text().splitlines())
    curves = sorted((Curve(**line) for line in lines), key=lambda curve: curve.index)
    if len(curves) <= TRIALS or curves[0].index != 0:
        raise SystemExit(f"{file} has too few curves; record more with benchmarks.curves")
    return Recorded(StudyDefinition.model_validate(header["study"]), curves)


class Proposals:
    """Which curve the next trial is, and with how many epochs."""

    def __init__(self, recorded: Recorded, sampler: str, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.default, *rest = recorded.curves
        self.unused = [rest[i] for i in self.random.permutation(len(rest))]
        self.definition = recorded.definition.model_copy(update={"sampler": sampler, "seed": seed})
        self.distributions = space.distributions(self.definition)

    def next(self, trials: list[Replayed]) -> tuple[Curve, int]:
        if not trials:
            return self.default, self.definition.defaults.epochs
        if self.definition.sampler == "random":
            epochs = self.distributions["epochs"]
            return self.unused.pop(), int(self.random.integers(epochs.low, epochs.high + 1))  # type: ignore[attr-defined]
        seen = [trial.seen(self.distributions) for trial in trials]
        proposed = propose(self.definition, seen, len(trials), {})
        near = [distance(self.distributions, proposed, curve.parameters) for curve in self.unused]
        return self.unused.pop(int(np.argmin(near))), proposed["epochs"]


def distance(distributions: dict[str, BaseDistribution], first: dict[str, Any], second: dict[str, Any]) -> float:
    """Squared distance between two configurations without epochs: each range has length 1, choices differ by 1."""
    total = 0.0
    for name, distribution in distributions.items():
        if name == "epochs":
            continue
        if isinstance(distribution, CategoricalDistribution):
            total += first[name] != second[name]
            continue
        low, high, *values = distribution.low, distribution.high, first[name], second[name]  # type: ignore[attr-defined]
        if distribution.log:  # type: ignore[attr-defined]
            low, high, *values = np.log([low, high, *values])
        total += float((values[0] - values[1]) / (high - low)) ** 2
    return total


class Search:
    """One replayed search: its trials, and the workers' next reports by time."""

    def __init__(self, recorded: Recorded, pruner: str, sampler: str, seed: int) -> None:
        self.proposals = Proposals(recorded, sampler, seed)
        self.study = optuna.create_study(
            direction="maximize", pruner=PRUNERS[pruner](), sampler=RandomSampler(seed=seed)
        )
        self.freezes = pruner == FREEZE
        self.clock, self.turn, self.idle = 0.0, itertools.count(), WORKERS
        self.trials: list[Replayed] = []
        self.waiting: list[tuple[float, int, Replayed]] = []

    def run(self) -> Result:
        self.employ()
        while self.waiting:
            self.clock, _, each = heapq.heappop(self.waiting)
            each.trial.report(each.curve.accuracies[each.done], each.curve.steps[each.done])
            each.done += 1
            if each.complete:
                each.state = TrialState.COMPLETE
                self.study.tell(each.trial, each.potential)
                self.idle += 1
            elif self.freezes:
                each.state = TrialState.PRUNED  # paused: it resumes if it is chosen
                self.idle += 1
            elif each.trial.should_prune():
                each.state = TrialState.PRUNED
                self.study.tell(each.trial, state=TrialState.PRUNED)
                self.idle += 1
            else:
                self.advance(each)
            self.employ()
        return result(self.trials, self.clock)

    def employ(self) -> None:
        """Give each idle worker what there is to do."""
        while self.idle and (chosen := self.choose()):
            if chosen == "new":
                chosen = self.begin()
            chosen.state = TrialState.RUNNING
            self.idle -= 1
            self.advance(chosen)

    def choose(self) -> Replayed | Literal["new"] | None:
        tickets = TRIALS - len(self.trials)
        if not self.freezes:
            return "new" if tickets else None
        reported = [trial for trial in self.trials if trial.done]
        best: dict[int, float] = {}
        for trial in reported:
            for step, accuracy in zip(trial.curve.steps, trial.curve.accuracies[: trial.done], strict=False):
                best[step] = max(best.get(step, 0.0), accuracy)
        complete, paused = (
            [trial.progress for trial in reported if trial.state == state]
            for state in (TrialState.COMPLETE, TrialState.PRUNED)
        )
        chosen = scheduler.choose(best, complete, paused, len(self.trials), tickets)
        return self.trials[chosen.number] if isinstance(chosen, Progress) else chosen

    def begin(self) -> Replayed:
        curve, epochs = self.proposals.next(self.trials)
        self.study.enqueue_trial({**curve.parameters, "epochs": epochs})
        trial = self.study.ask(self.proposals.distributions)
        self.trials.append(Replayed(len(self.trials), curve, trial, epochs))
        return self.trials[-1]

    def advance(self, each: Replayed) -> None:
        heapq.heappush(self.waiting, (self.clock + each.curve.seconds[each.done], next(self.turn), each))


def search(recorded: Recorded, pruner: str, sampler: str, seed: int) -> Result:
    """Replay one search."""
    return Search(recorded, pruner, sampler, seed).run()


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
    """The share that was lost, and its bootstrap interval over configurations (Efron, 1979)."""
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
        "lost": [share, low, high],
        "clock": fmean(each.clock for each in results),
        **averages,
    }


def task(arguments: tuple[Recorded, str, str, int]) -> Result:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return search(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=200, help="replayed searches of each row (default: 200)")
    parser.add_argument("--sampler", choices=("random", "tpe", "gp"), action="append", help="default: random and tpe")
    parser.add_argument("--pruner", choices=PRUNERS, action="append", help="default: all")
    parser.add_argument("--curves", type=Path, default=Path(__file__).with_name("curves.jsonl"))
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "replay.json", help="default: build/replay.json")
    options = parser.parse_args()
    recorded = read(options.curves)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{options.orders} replayed searches of {TRIALS} trials on {len(recorded.curves)} curves")
    for column in ("sampler", "pruner", "lost", "saved", "complete", "regret", "found"):
        table.add_column(column, justify="left" if column in ("sampler", "pruner") else "right")
    rows = []
    with get_context("spawn").Pool(cores()) as pool:
        for sampler, pruner in itertools.product(options.sampler or ("random", "tpe"), options.pruner or PRUNERS):
            tasks = [(recorded, pruner, sampler, seed) for seed in range(options.orders)]
            rows.append(row := summary(pruner, sampler, pool.map(task, tasks, chunksize=2)))
            share, low, high = row["lost"]
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
