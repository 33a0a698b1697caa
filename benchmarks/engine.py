"""How fast trainings go: the loop of the frameworks' examples, ours, and what the machine could do.

    .venv/bin/python -m benchmarks.engine          # some 20 minutes on two cores
    .venv/bin/python -m benchmarks.engine --quick  # a smoke run on part of the data: the numbers mean little

1. Images a second over all cores, each of which is trained on once and a sixth of which
   are scored, as in an epoch of Fashion-MNIST. Every way of running is measured in turn,
   again and again; the table has medians. `stock` is benchmarks/stock.py, with and without
   loader workers, torch threads, as many trainings side by side as there are cores, and
   with torch's automatic mixed precision, which the examples do not use. `ours` is
   fmnist/training.py. The limit is the rate of a large fp32 matrix product on all cores in
   the same run, divided by the network's floating-point operations; ours can come near to
   it, or above, as it multiplies in bfloat16 where the processor does.
2. Test accuracy of both after the same epochs, for each of some seeds. The last weights of
   `stock` are scored; of ours the averaged ones, as always.
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
TIMEOUT = 300  # seconds that a training waits for the others to be ready
SCORED = 6  # images are trained on for one that is scored
NETWORKS = {
    "simple": Hyperparameters(architecture="simple", filters=8, dropout=0.2, augmentation=1.0, learning_rate=0.001),
    "cnn": Hyperparameters(architecture="cnn", filters=16, dropout=0.2, augmentation=1.0, learning_rate=0.002),
}
BARS = {"simple": (4.5, 6), "cnn": (3.3, 4)}  # times stock: what we must reach, and what we aim at
APART = 0.3  # points between the mean accuracies of both, at the most


@dataclass(frozen=True)
class Way:
    """A way to run trainings: how many at once, with how many torch threads and loader workers each."""

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


WAYS = (
    Way("stock", 1, 1),
    Way("stock", 1, CORES),
    Way("stock", 1, 1, workers=2),
    Way("stock", 1, CORES, workers=2),
    Way("stock", CORES, 1),
    Way("stock", CORES, 1, workers=1),
    Way("stock", CORES, 1, mixed=True),
    Way("stock", CORES, 1, workers=1, mixed=True),
    Way("ours", 1, CORES),
    Way("ours", CORES, 1),
)


def epochs(way: Way, hyperparameters: Hyperparameters, first: Splits, then: Splits) -> Iterator[None]:
    """An epoch on the first images, to warm up, and one on the others; each with its scores."""
    if way.loop == "ours":
        training = Training(hyperparameters, seed=0, tta="none")  # as the stock loop scores
        for splits in (first, then):
            next(training.epochs(splits))
            yield
        return
    model = stock.network(hyperparameters)
    optimizer = torch.optim.Adam(model.parameters(), lr=hyperparameters.learning_rate)
    measured = stock.loaders(then, hyperparameters, way.workers)
    # Loader workers start at their first epoch, which is no part of the measured one either.
    warming = measured if way.workers else stock.loaders(first, hyperparameters, 0)
    for batches, scored in (warming, measured):
        stock.train(model, batches, optimizer, hyperparameters, way.mixed)
        stock.accuracy(model, scored, way.mixed)
        yield


def part(images: LabelledImages, count: int) -> LabelledImages:
    return images[torch.arange(min(count, len(images)))]


def measure(way: Way, name: str, images: int, together: Barrier, seconds: "Queue[float]") -> None:
    """One of a way's trainings; puts how long it took."""
    torch.set_num_threads(way.threads)
    data = fashion.load()
    hyperparameters = NETWORKS[name].model_copy(update={"epochs": 2})
    then, first = (Splits(part(data.train, n), part(data.test, n // SCORED), "test") for n in (images, 1500))
    running = epochs(way, hyperparameters, first, then)
    next(running)
    together.wait(TIMEOUT)
    began = time.perf_counter()
    next(running)
    seconds.put(time.perf_counter() - began)


def rate(way: Way, name: str, images: int) -> float:
    """Images a second of all the way's trainings, each in its own process."""
    return sum(images / seconds for seconds in side_by_side(way.trainings, measure, way, name, images))


def side_by_side(count: int, function: Callable[..., None], *arguments: Any) -> list[float]:
    """What a function puts into the queue that it is given, after a barrier, in each of so many processes."""
    context = get_context("spawn")
    together, results = context.Barrier(count), context.Queue()
    processes = [context.Process(target=function, args=(*arguments, together, results)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{function.__name__}{arguments} failed")
    return [results.get() for _ in processes]


def multiply(together: Barrier, rates: "Queue[float]") -> None:
    """Puts the floating-point operations a second of a large fp32 matrix product on one thread."""
    torch.set_num_threads(1)
    side, repeats = 1024, 30
    left, right = torch.rand(side, side), torch.rand(side, side)
    _ = left @ right
    together.wait(TIMEOUT)
    began = time.perf_counter()
    for _ in range(repeats):
        _ = left @ right
    rates.put(repeats * 2 * side**3 / (time.perf_counter() - began))


def product_rate() -> float:
    """Floating-point operations a second of all cores."""
    return sum(side_by_side(CORES, multiply))


def operations(name: str) -> float:
    """Floating-point operations of an image that is trained on, and of its share of one that is scored."""
    network = stock.network(NETWORKS[name])
    images = torch.zeros(2, 1, SIDE, SIDE)
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(network(images), torch.zeros(2, dtype=torch.int64))
        forward: float = counter.get_total_flops()
        loss.backward()
    trained: float = counter.get_total_flops()
    return (trained + forward / SCORED) / 2


def learn(task: tuple[str, str, int, int]) -> tuple[str, str, float]:
    """One training to its end, on one thread; returns loop, network and test accuracy."""
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
            console.print(f"training {number} of {len(tasks)}: {name}, {loop}: {accuracy:.2%}", highlight=False)
    return found


def speeds(console: Console, names: list[str], images: int, rounds: int) -> list[dict[str, Any]]:
    """Every way of every network, in turn; a record each with its rates, and of the limit."""
    rates: dict[tuple[str, Way], list[float]] = {(name, way): [] for name in names for way in WAYS}
    products = []
    for number in range(1, rounds + 1):
        products.append(product_rate())
        for name, way in rates:
            rates[name, way].append(rate(way, name, images))
        console.print(f"round {number} of {rounds} measured")
    return [
        {
            "network": name,
            "limit": statistics.median(products) / operations(name),
            "product": statistics.median(products),
            "ways": [{**asdict(way), "way": str(way), "rates": rates[name, way]} for way in WAYS],
        }
        for name in names
    ]


def best(record: dict[str, Any], loop: str, mixed: bool = False) -> float:
    """The fastest way's images a second."""
    ways = [way for way in record["ways"] if (way["loop"], way["mixed"]) == (loop, mixed)]
    return float(max(statistics.median(way["rates"]) for way in ways))


def speed_table(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['network']}: images a second over {CORES} cores, trained on and scored")
    for column in ("loop", "trainings x threads", "images/s", "lowest - highest", "by best stock", "of the limit"):
        table.add_column(column, justify="left" if column in ("loop", "trainings x threads") else "right")
    fastest = best(record, "stock")
    for way in record["ways"]:
        middle = statistics.median(way["rates"])
        table.add_row(
            way["loop"],
            way["way"],
            f"{middle:,.0f}",
            f"{min(way['rates']):,.0f} - {max(way['rates']):,.0f}",
            f"{middle / fastest:.2f}",
            f"{middle / record['limit']:.0%}",
        )
    note = f"fp32 product, {record['product'] / 1e9:,.0f} GFLOP/s"
    table.add_row("limit", note, f"{record['limit']:,.0f}", "", f"{record['limit'] / fastest:.2f}", "100%")
    return table


def accuracy_line(name: str, found: dict[str, list[float]], count: int) -> str:
    """Both means and their difference, in percent and points."""
    means = ", ".join(f"{loop} {estimate(values).mean:.2%}" for loop, values in found.items())
    interval = "one seed tells no interval"
    if len(found["ours"]) > 1:
        gain = ttest_ind(found["ours"], found["stock"], equal_var=False).confidence_interval()
        interval = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
    gap = 100 * (estimate(found["ours"]).mean - estimate(found["stock"]).mean)
    return (
        f"{name}, {count} epochs, {len(found['ours'])} seeds: {means}; ours less stock {gap:+.2f} points ({interval}); "
        f"the bar is {APART} apart at the most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--network", choices=NETWORKS, help="only this one")
    parser.add_argument("--rounds", type=int, default=5, help="of part 1 (default: 5)")
    parser.add_argument("--seeds", type=int, default=3, help="of part 2; 0 leaves it out (default: 3)")
    parser.add_argument("--epochs", type=int, default=5, help="of part 2 (default: 5)")
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
        ratio, (bar, goal) = best(record, "ours") / best(record, "stock"), BARS[record["network"]]
        beside = best(record, "ours") / best(record, "stock", mixed=True)
        console.print(
            f"{record['network']}: {ratio:.1f} times stock; the bar is {bar}, the goal {goal} "
            f"({beside:.1f} times stock with mixed precision)"
        )
    if seeds:
        result["accuracies"] = accuracies(console, names, seeds, options.epochs)
        for name, found in result["accuracies"].items():
            console.print(accuracy_line(name, found, options.epochs), highlight=False)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
