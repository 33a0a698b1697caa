"""Learning curves of the default study's space, recorded once for benchmarks/replay.py.

    .venv/bin/python -m benchmarks.curves  # hours on two cores; resumes where it was stopped

The default configuration of studies/cnn.toml and quasi-random ones of its space are trained
without a pruner, each to the most epochs of the space: a training passes through all shorter
ones. They learn from a third of the training images and are scored on all test images. A line
of curves.jsonl each: `parameters`, `steps` (hundredths of an epoch), `accuracies` and
`seconds` (CPU time of one thread since the report before) at them. Its first line is what they
were made with.
"""

import argparse
import json
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from fmnist import data as fashion
from fmnist.data import Splits
from fmnist.seeds import derive
from fmnist.training import Training
from search.run.local import cores
from search.study import definition, space
from search.study.definition import StudyDefinition
from search.study.record import STEPS_PER_EPOCH

FILE = Path(__file__).with_name("curves.jsonl")
IMAGES = 20_000
DEFINED = definition.read(definition.locate("cnn"))
EPOCHS = DEFINED.longest_epochs()
TRAINED = DEFINED.model_dump(mode="json", include={"defaults", "space", "seed"})  # what the curves depend on


def record(index: int) -> dict[str, Any]:
    """The curve of the index-th configuration; the default is number 0."""
    torch.set_num_threads(1)
    data = fashion.load()
    splits = Splits(data.train[torch.arange(IMAGES)], data.test, "test")
    drawn = space.quasi_random_point(DEFINED.space, DEFINED.seed, index, {})
    point = drawn if index else space.default_point(DEFINED)
    hyperparameters = DEFINED.defaults.model_copy(update={**point, "epochs": EPOCHS})
    curve: dict[str, Any] = {"index": index, "parameters": point, "steps": [], "accuracies": [], "seconds": []}
    begun = time.process_time()
    for metrics in Training(hyperparameters, derive(DEFINED.seed, "curve", index)).epochs(splits, early=True):
        curve["steps"].append(round(metrics.epoch * STEPS_PER_EPOCH))
        curve["accuracies"].append(metrics.accuracy)
        curve["seconds"].append(round(time.process_time() - begun, 2))
        begun = time.process_time()
    return curve


def _machine(header: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in header.items() if name not in ("on", "study")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=101, help="configurations (default: 101)")
    parser.add_argument("--file", type=Path, default=FILE, help="default: benchmarks/curves.jsonl")
    options = parser.parse_args()
    made_with = {**machine("torch", "scipy"), "images": IMAGES, "study": TRAINED}
    if not options.file.exists():
        options.file.write_text(json.dumps(made_with) + "\n")
    header, *recorded = map(json.loads, options.file.read_text().splitlines())
    recorded_study = StudyDefinition.model_validate(header["study"])
    if recorded_study != StudyDefinition.model_validate(TRAINED) or _machine(header) != _machine(made_with):
        raise SystemExit(f"{options.file} is of another machine, version or study; remove it, or name another --file")
    known = {curve["index"] for curve in recorded}
    missing = [index for index in range(options.count) if index not in known]
    with get_context("spawn").Pool(cores()) as pool, options.file.open("a") as file:
        for number, curve in enumerate(pool.imap_unordered(record, missing), 1):
            file.write(json.dumps(curve) + "\n")
            file.flush()
            print(f"curve {number} of {len(missing)}: {curve['accuracies'][-1]:.2%}", flush=True)


if __name__ == "__main__":
    main()
