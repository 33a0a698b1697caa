"""Training speed: the loop of the frameworks' examples, ours, and the machine's limit.

    .venv/bin/python -m benchmarks.engine          # about 20 minutes on two cores
    .venv/bin/python -m benchmarks.engine --quick  # smoke test on part of the data; the numbers mean little

1. Images per second over all cores: each image is trained on once and a sixth of the images
   are scored, as in an epoch of Fashion-MNIST. All setups are measured in turn, in several
   rounds; the table shows medians. `stock` is benchmarks/stock.py, with and without loader
   workers, torch threads, one training run per core, and torch's automatic mixed precision,
   which the examples do not use. `ours` is fmnist/training.py. The limit is the rate of a
   large fp32 matrix product on all cores in the same round, divided by the network's
   floating-point operations; ours can reach or exceed it on processors with bfloat16.
2. Test accuracy of both after the same number of epochs, for several seeds: of the last
   weights of `stock`, and the averaged weights of `ours`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_ind
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import stock
from benchmarks.machine import machine
from fmnist import data as fashion
from fmnist.data import SIDE, LabelledImages, Splits
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training
from search.results.intervals import estimate
from search.run.local import cores

ROOT = Path(__file__).resolve().parent.parent
CORES = cores()
TIMEOUT = 300  # seconds that a training run waits for the others to be ready
SCORED = 6  # training images per scored image
NETWORKS = {
    "simple": Hyperparameters(architecture="simple", filters=8, dropout=0.2, augmentation=1.0, learning_rate=0.001),
    "cnn": Hyperparameters(architecture="cnn", filters=16, dropout=0.2, augmentation=1.0, learning_rate=0.002),
}
BARS = {"simple": (4.5, 6), "cnn": (3.3, 4)}  # speed relative to stock: required, and goal
APART = 0.3  # maximum difference of the mean accuracies, in percentage points


@dataclass(frozen=True)
class Setup:
    """How many training runs at once, with how many torch threads and loader workers each."""

    loop: str
    trainings: int
    threads: int
    workers: int = 0
    mixed: bool = False

    def __str__(self) -> str:
        parts = [f"{self.trainings} x {self.threads} thread{'s' * (self.threads > 1)}"]
        if self.workers:
            parts.append(f"{self.workers} loader workers")
        if self.mixed:
            parts.append("mixed precision")
        return ", ".join(parts)


SETUPS = (
    Setup("stock", 1, 1),
    Setup("stock", 1, CORES),
    Setup("stock", 1, 1, workers=2),
    Setup("stock", 1, CORES, workers=2),
    Setup("stock", CORES, 1),
    Setup("stock", CORES, 1, workers=1),
    Setup("stock", CORES, 1, mixed=True),
    Setup("stock", CORES, 1, workers=1, mixed=True),
    Setup("ours", 1, CORES),
    Setup("ours", CORES, 1),
)


def epochs(setup: Setup, hyperparameters: Hyperparameters, warmup: Splits, measured: Splits) -> Iterator[None]:
    """Train and score one epoch to warm up, and one to measure."""
    if setup.loop == "ours":
        training = Training(hyperparameters, seed=0, tta="none")  # like the stock loop
        for splits in (warmup, measured):
            next(training.epochs(splits))
            yield
        return
    model = stock.network(hyperparameters)
    optimizer = torch.optim.Adam(model.parameters(), lr=hyperparameters.learning_rate)
    loaders = stock.loaders(measured, hyperparameters, setup.workers)
    # Loader workers start in their first epoch, so the same loaders must warm up.
    warmup_loaders = loaders if setup.workers else stock.loaders(warmup, hyperparameters, 0)
    for batches, scored in (warmup_loaders, loaders):
        stock.train(model, batches, optimizer, hyperparameters, setup.mixed)
        stock.accuracy(model, scored, setup.mixed)
        yield


def part(images: LabelledImages, count: int) -> LabelledImages:
    return images[torch.arange(min(count, len(images)))]


def measure(setup: Setup, name: str, images: int, barrier: Barrier, seconds: "Queue[float]") -> None:
    """Run one of the setup's training runs; puts its seconds into the queue."""
    torch.set_num_threads(setup.threads)
    data = fashion.load()
    hyperparameters = NETWORKS[name].model_copy(update={"epochs": 2})
    measured, warmup = (Splits(part(data.train, n), part(data.test, n // SCORED), "test") for n in (images, 1500))
    running = epochs(setup, hyperparameters, warmup, measured)
    next(running)
    barrier.wait(TIMEOUT)
    began = time.perf_counter()
    next(running)
    seconds.put(time.perf_counter() - began)


def rate(setup: Setup, name: str, images: int) -> float:
    """Images per second of all the setup's training runs, each in its own process."""
    return sum(images / seconds for seconds in in_parallel(setup.trainings, measure, setup, name, images))


def in_parallel(count: int, function: Callable[..., None], *arguments: Any) -> list[float]:
    """Call a function in `count` processes, with a barrier and a queue; returns what each puts into the queue."""
    context = get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    processes = [context.Process(target=function, args=(*arguments, barrier, results)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{function.__name__}{arguments} failed")
    return [results.get() for _ in processes]


def multiply(barrier: Barrier, rates: "Queue[float]") -> None:
    """Measure a large fp32 matrix product on one thread; puts floating-point operations per second into the queue."""
    torch.set_num_threads(1)
    side, repeats = 1024, 30
    left, right = torch.rand(side, side), torch.rand(side, side)
    _ = left @ right
    barrier.wait(TIMEOUT)
    began = time.perf_counter()
    for _ in range(repeats):
        _ = left @ right
    rates.put(repeats * 2 * side**3 / (time.perf_counter() - began))


def product_rate() -> float:
    """Floating-point operations per second of all cores."""
    return sum(in_parallel(CORES, multiply))


def operations(name: str) -> float:
    """Floating-point operations per training image, including its share of a scored image."""
    network = stock.network(NETWORKS[name])
    images = torch.zeros(2, 1, SIDE, SIDE)
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(network(images), torch.zeros(2, dtype=torch.int64))
        forward: float = counter.get_total_flops()
        loss.backward()
    trained: float = counter.get_total_flops()
    return (trained + forward / SCORED) / 2


def learn(task: tuple[str, str, int, int]) -> tuple[str, str, float]:
    """Complete one training run on one thread; returns loop, network and test accuracy."""
    loop, name, seed, count = task
    torch.set_num_threads(1)
    splits = fashion.split(fashion.load(), "test")
    hyperparameters = NETWORKS[name].model_copy(update={"epochs": count})
    if loop == "ours":
        *_, last = (metrics.accuracy for metrics in Training(hyperparameters, seed, tta="none").epochs(splits))
    else:
        *_, last = stock.epochs(hyperparameters, splits, seed)
    return loop, name, last


def accuracies(console: Console, names: list[str], seeds: int, count: int) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {name: {"stock": [], "ours": []} for name in names}
    tasks = [(loop, name, seed, count) for name in names for seed in range(seeds) for loop in ("stock", "ours")]
    with get_context("spawn").Pool(CORES) as pool:
        for number, (loop, name, accuracy) in enumerate(pool.imap_unordered(learn, tasks), 1):
            found[name][loop].append(accuracy)
            console.print(f"training run {number} of {len(tasks)}: {name}, {loop}: {accuracy:.2%}", highlight=False)
    return found


def speeds(console: Console, names: list[str], images: int, rounds: int) -> list[dict[str, Any]]:
    """Measure all setups of all networks in turn; one record per network, with its limit."""
    rates: dict[tuple[str, Setup], list[float]] = {(name, setup): [] for name in names for setup in SETUPS}
    products = []
    for number in range(1, rounds + 1):
        products.append(product_rate())
        for name, setup in rates:
            rates[name, setup].append(rate(setup, name, images))
        console.print(f"round {number} of {rounds} measured")
    return [
        {
            "network": name,
            "limit": statistics.median(products) / operations(name),
            "product": statistics.median(products),
            "ways": [{**asdict(setup), "way": str(setup), "rates": rates[name, setup]} for setup in SETUPS],
        }
        for name in names
    ]


def best(record: dict[str, Any], loop: str, mixed: bool = False) -> float:
    """Images per second of the fastest setup."""
    setups = [setup for setup in record["ways"] if (setup["loop"], setup["mixed"]) == (loop, mixed)]
    return float(max(statistics.median(setup["rates"]) for setup in setups))


def speed_table(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['network']}: images per second over {CORES} cores, trained on and scored")
    for column in ("loop", "runs x threads", "images/s", "lowest - highest", "times best stock", "of the limit"):
        table.add_column(column, justify="left" if column in ("loop", "runs x threads") else "right")
    fastest = best(record, "stock")
    for setup in record["ways"]:
        median = statistics.median(setup["rates"])
        table.add_row(
            setup["loop"],
            setup["way"],
            f"{median:,.0f}",
            f"{min(setup['rates']):,.0f} - {max(setup['rates']):,.0f}",
            f"{median / fastest:.2f}",
            f"{median / record['limit']:.0%}",
        )
    note = f"fp32 product, {record['product'] / 1e9:,.0f} GFLOP/s"
    table.add_row("limit", note, f"{record['limit']:,.0f}", "", f"{record['limit'] / fastest:.2f}", "100%")
    return table


def accuracy_line(name: str, found: dict[str, list[float]], count: int) -> str:
    means = ", ".join(f"{loop} {estimate(values).mean:.2%}" for loop, values in found.items())
    interval = "no interval with one seed"
    if len(found["ours"]) > 1:
        gain = ttest_ind(found["ours"], found["stock"], equal_var=False).confidence_interval()
        interval = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
    gap = 100 * (estimate(found["ours"]).mean - estimate(found["stock"]).mean)
    return (
        f"{name}, {count} epochs, {len(found['ours'])} seeds: {means}; "
        f"ours minus stock {gap:+.2f} points ({interval}), required: at most {APART} apart"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test")
    parser.add_argument("--network", choices=NETWORKS, help="measure only this network")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of part 1 (default: 5)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of part 2; 0 skips it (default: 3)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of part 2 (default: 5)")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "engine.json", help="default: build/engine.json")
    options = parser.parse_args()
    names = [options.network] if options.network else list(NETWORKS)
    images, rounds, seeds = (600, 1, 0) if options.quick else (15_000, options.rounds, options.seeds)
    console = Console(width=None if sys.stdout.isatty() else 120)
    result: dict[str, Any] = {"machine": machine("torch", "torchvision")}
    console.print(", ".join(f"{key} {value}" for key, value in result["machine"].items()), highlight=False)
    result["speeds"] = speeds(console, names, images, rounds)
    for record in result["speeds"]:
        console.print(speed_table(record))
        ratio, (required, goal) = best(record, "ours") / best(record, "stock"), BARS[record["network"]]
        mixed_ratio = best(record, "ours") / best(record, "stock", mixed=True)
        console.print(
            f"{record['network']}: {ratio:.1f} times stock; required {required}, goal {goal} "
            f"({mixed_ratio:.1f} times stock with mixed precision)"
        )
    if seeds:
        result["accuracies"] = accuracies(console, names, seeds, options.epochs)
        for name, found in result["accuracies"].items():
            console.print(accuracy_line(name, found, options.epochs), highlight=False)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
