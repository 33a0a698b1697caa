"""Cost of database and sampler per trial, and the trials per second that they allow.

    .venv/bin/python -m benchmarks.storage          # parts 1 to 3, a few minutes
    .venv/bin/python -m benchmarks.storage --quick  # smoke test; the numbers mean little
    .venv/bin/python -m benchmarks.storage --run    # also part 4: a real search, about 10 minutes more

1. Milliseconds of each step of a trial with three reports, for a single worker, with 100,
   1,000 and 10,000 finished trials in the study. Search space and pruner are those of
   studies/cnn.toml, the sampler is TPE. The steps:
   join (a new worker reads the study; once), look (for a request to stop), claim, suggest
   (read new trials, sample, store), checkpoint (find it or store its name), report (report,
   ask the pruner), end (state, value, attempt), drop (find the checkpoints of outperformed
   trials).
2. The same with 50, 100 and 1,000 tickets, which Optuna reads again each time (`run` keeps
   at most 100). And with 100 of 1,000 trials paused, among which the scheduler chooses at
   each claim and each report.
3. Trials per second of worker processes that skip training, with the random sampler and one
   report per trial. All must end COMPLETE in their first attempt.
4. The share of the workers' time in a real search, from a worker's first claim to the end
   of its last trial, that is neither training nor evaluation.

SQLite is a file in the temporary folder, PostgreSQL a separate server on loopback; both
flush each commit to disk. Parts 1 to 3 omit heartbeats and the checkpoints' bytes.
"""

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import optuna
import psycopg
import torch
from optuna.distributions import distribution_to_json
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, text

from fmnist import data as fashion
from fmnist.training import EpochMetrics
from search.database.connection import lock, open_storage
from search.database.optuna_schema import engine_of
from search.database.retry import retry
from search.database.url import default_url
from search.queue import lease, tickets
from search.queue.lease import Holder
from search.run import local
from search.study import definition, space
from search.study.definition import StudyDefinition
from search.study.places import KEEP, Place, artifacts_of
from search.study.record import ATTEMPTS, CHECKPOINT, PAUSED, Epoch
from search.study.store import load_study, open_study, stop_requests
from search.worker import loop
from search.worker import trial as training
from search.worker.retention import drop_outperformed
from search.worker.trial import Objective
from tests.factories import digits
from tests.postgresql import Server, server

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("look", "claim", "suggest", "checkpoint", "report", "end", "drop")
# Numbers of trials: finished or paused, waiting, paused.
SIZES = ((100, 10, 0), (1_000, 10, 0), (10_000, 10, 0), (100, 50, 0), (100, 100, 0), (100, 1_000, 0), (1_000, 10, 100))
WORKERS = {"SQLite": (1, 4, 8), "PostgreSQL": (1, 4, 16)}
EPOCHS = (0.25, 0.5, 1.0)  # of a trial's reports; the pruner compares trials at the first and the last
GOAL = 0.03  # maximum share of the workers' time that is neither training nor evaluation

Milliseconds = dict[str, list[float]]  # by step


@contextmanager
def timed(spent: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent.append(1000 * (time.perf_counter() - started))


def run_trial(study: optuna.Study, common: Objective, epochs: tuple[float, ...]) -> Milliseconds | None:
    """Do a worker's steps for one trial, except training; None if no trial is waiting."""
    spent: Milliseconds = defaultdict(list)
    with timed(spent["look"]):
        stop_requests(study)
    with timed(spent["claim"]):
        ticket = retry(lambda: tickets.claim(study, Holder(), uuid4().hex))
    if ticket is None:
        return None
    with lease.fenced(study, ticket):
        with timed(spent["suggest"]):
            trial = loop._open(study, common.definition, ticket)
            hyperparameters = space.hyperparameters_of(common.definition, trial.params)
        with timed(spent["checkpoint"]):
            stored = trial.storage.get_trial(trial._trial_id)
            reported = set(stored.intermediate_values)
            training._saved(stored, common, hyperparameters)
        for epoch in epochs:
            metrics = EpochMetrics(epoch, 0.0, 0.0, 0.0, 940, 1000, 1.0, [])  # too good to be pruned
            with timed(spent["checkpoint"]):
                name_checkpoint(trial, epoch)
            with timed(spent["report"]):
                training._report(trial, metrics, reported)
                training._verdict(trial, common.definition, hyperparameters, metrics)
            with timed(spent["look"]):
                stop_requests(study)
    with timed(spent["end"]):
        retry(lambda: lease.finish(study, ticket, TrialState.COMPLETE, metrics.accuracy))
    with timed(spent["drop"]):
        retry(lambda: drop_outperformed(study, common.artifacts, study.user_attrs[KEEP]))
    return spent


def name_checkpoint(trial: Trial, epoch: float) -> None:
    """The database write of search.worker.trial._save: a record as large as a real one."""
    digests = {"digest": "0" * 64, "weights": "0" * 64}
    record = {"name": f"trial-{trial.number}", **digests, "device": "cpu", "threads": 1, "seconds": epoch}
    history = [[0.123456789] * len(Epoch._fields)] * 8
    trial.set_user_attr(CHECKPOINT, record | {"confusion": [[100] * 10] * 10, "history": history})


def make(url: str, folder: Path, defined: StudyDefinition, begun: int, waiting: int, paused: int) -> Objective:
    """Create the study "s" as `run` does, with that many trials; returns its workers' shared objective."""
    fashion.write(folder / "digits", *digits())
    data = fashion.load(folder / "digits")
    storage = open_storage(url, "create")
    with lock(url):
        study = open_study(storage, "s", defined, data, Place(folder / "s"))
        fill(study, defined, begun, paused)
        tickets.top_up(study, defined, begun)
        tickets.enqueue(study, defined, waiting, {})
    return Objective(defined, data, fashion.split(data, defined.score_on), torch.device("cpu"), artifacts_of(study))


def fill(study: optuna.Study, defined: StudyDefinition, count: int, paused: int) -> None:
    """Insert trials directly into the tables; two in three were paused or pruned at their first report."""
    now, rows = datetime.now(UTC).replace(tzinfo=None), defaultdict(list)
    with engine_of(study).begin() as connection:
        for number in range(count):
            state = TrialState.PRUNED if number % 3 else TrialState.COMPLETE
            if number % 3 and paused:
                state, paused = TrialState.WAITING, paused - 1
            of_trial = {"study_id": study._study_id, "number": number, "state": state}
            added = insert(TrialModel).values(**of_trial, datetime_start=now, datetime_complete=now)
            trial_id = connection.scalars(added.returning(TrialModel.trial_id)).one()
            for table, row in trial_rows(defined, number, EPOCHS[:1] if number % 3 else EPOCHS, state):
                rows[table].append({"trial_id": trial_id, **row})
        for table, of_table in rows.items():
            connection.execute(insert(table), of_table)
        if connection.dialect.name == "postgresql":  # its autovacuum would do so within a minute
            connection.execute(text("ANALYZE"))


def trial_rows(
    defined: StudyDefinition, number: int, epochs: tuple[float, ...], state: TrialState
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Table and content of each row of a finished or paused trial."""
    point = space.random_point(defined.space, 1, number, {})
    accuracy = 0.93 - abs(point["learning_rate"] - 0.002) - 0.01 * point["dropout"]
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    attempt = {"token": uuid4().hex, **vars(Holder()), "started": now, "ended": now, "outcome": "pruned", "step": 25}
    for name, distribution in space.distributions(defined).items():
        internal, kind = distribution.to_internal_repr(point[name]), distribution_to_json(distribution)
        yield TrialParamModel.__table__, {"param_name": name, "param_value": internal, "distribution_json": kind}
    for epoch in epochs:
        step = round(100 * epoch)
        yield (
            TrialIntermediateValueModel.__table__,
            {"step": step, "intermediate_value": accuracy, "intermediate_value_type": "FINITE"},
        )
    attributes: dict[str, Any] = {ATTEMPTS: [attempt]}
    if state == TrialState.WAITING:
        attempt["outcome"] = lease.PAUSE
        attributes[PAUSED] = {"step": step, "accuracy": accuracy, "end": 100 * int(point["epochs"])}
    else:
        yield TrialValueModel.__table__, {"objective": 0, "value": accuracy, "value_type": "FINITE"}
    attributes[CHECKPOINT] = {"name": None, "weights": "0" * 64, "seconds": 9.9}
    for key, value in attributes.items():
        yield TrialUserAttributeModel.__table__, {"key": key, "value_json": json.dumps(value)}
    for key, stored in (("tpe:relative_params:0", json.dumps(point)), ("completed_rung_0", accuracy)):
        yield TrialSystemAttributeModel.__table__, {"key": key, "value_json": json.dumps(stored)}


def costs(url: str, folder: Path, begun: int, waiting: int, paused: int, repeats: int) -> dict[str, Any]:
    """Parts 1 and 2: count, median and 90th percentile of each step, for one study size."""
    defined = definition.read(ROOT / "studies" / "cnn.toml", sampler="tpe")
    common = make(url, folder, defined, begun, waiting, paused)
    spent: Milliseconds = defaultdict(list)
    with timed(spent["join"]):
        study = load_study(open_storage(url, "write"), "s")
        study.get_trials(deepcopy=False)
    run_trial(study, common, EPOCHS)  # the first compiles the statements
    for _ in range(repeats):
        tickets.enqueue(study, defined, 1, {})  # keeps the number of waiting trials
        of_trial = run_trial(study, common, EPOCHS) or {}
        for step, milliseconds in of_trial.items():
            spent[step] += milliseconds
        spent["a trial"].append(sum(map(sum, of_trial.values())))
    steps = {step: (len(each), *np.percentile(each, [50, 90]).tolist()) for step, each in spent.items()}
    return {"finished": begun - paused, "waiting": waiting, "paused": paused, "trials": repeats, "steps": steps}


def throughput(url: str, folder: Path, workers: int, waiting: int) -> dict[str, Any]:
    """Part 3: trials per second, from the first claim to the last end in the database."""
    defined = definition.read(ROOT / "studies" / "cnn.toml", sampler="random")
    common = make(url, folder, defined, 0, waiting, 0)
    context = local.process_context()  # as workers are started
    barrier = context.Barrier(workers)
    processes = [context.Process(target=run_all_trials, args=(url, common, barrier)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    trials = load_study(open_storage(url), "s").get_trials(deepcopy=False)
    exact = [(t.state, len(t.user_attrs[ATTEMPTS])) for t in trials] == [(TrialState.COMPLETE, 1)] * waiting
    crashed, rate = sum(process.exitcode != 0 for process in processes), waiting / span(trials)
    return {"workers": workers, "crashed": crashed, "tickets": waiting, "exact": exact, "trials_per_second": rate}


def run_all_trials(url: str, common: Objective, barrier: Barrier) -> None:
    """A worker process of part 3."""
    study = load_study(open_storage(url, "write"), "s")
    barrier.wait(timeout=300)  # seconds, in case a process dies before it gets here
    while run_trial(study, common, EPOCHS[:1]):
        pass


def run_search(trials: int) -> dict[str, Any]:
    """Part 4: share of each worker's time, from first start to last end, that checkpoints do not count as training."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "search", "run", "--trials", str(trials), "--output", folder, "--quiet"]
        call += ["--finalists", "0"]
        subprocess.run(call, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        study = load_study(open_storage(default_url(Path(folder))), "cnn")
        by_worker = defaultdict(list)
        for trial in study.get_trials(deepcopy=False):
            by_worker[trial.user_attrs[ATTEMPTS][-1]["pid"]].append(trial)
    seconds = sum(span(of) for of in by_worker.values())
    checkpoints = [trial.user_attrs.get(CHECKPOINT) for of in by_worker.values() for trial in of]
    trained = sum(checkpoint["seconds"] for checkpoint in checkpoints if checkpoint)  # none if it diverged
    return {"trials": trials, "workers": len(by_worker), "seconds": seconds, "share": 1 - trained / seconds}


def span(trials: list[FrozenTrial]) -> float:
    """Seconds from the first start to the last end."""
    times = [(t.datetime_start, t.datetime_complete) for t in trials if t.datetime_start and t.datetime_complete]
    return (max(end for _, end in times) - min(start for start, _ in times)).total_seconds()


@contextmanager
def durable_server() -> Iterator[Server]:
    """The tests' PostgreSQL server, restarted with fsync enabled."""
    with server() as running:
        running.stop()
        running.start(durable=True)
        yield running


def machine(postgresql: Server) -> dict[str, str]:
    with psycopg.connect(postgresql.url()) as connection:
        served = connection.info.parameter_status("server_version") or "?"
    return {
        "on": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores",
        "Python": platform.python_version(),
        **{name: version(name) for name in ("optuna", "SQLAlchemy", "psycopg", "torch")},
        "PostgreSQL": served.split()[0],
        "SQLite": sqlite3.sqlite_version,
    }


def measure(postgresql: Server, folder: Path, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Parts 1 to 3, each measurement in a new database."""
    sizes, repeats, waiting = (SIZES[:1], 3, 12) if quick else (SIZES, 30, 200)
    result: dict[str, list[dict[str, Any]]] = {"costs": [], "throughput": []}
    jobs: list[tuple[str, Callable[..., dict[str, Any]], tuple[int, ...]]]
    jobs = [(name, costs, (*size, repeats)) for name in WORKERS for size in sizes]
    jobs += [(name, throughput, (n, waiting)) for name in WORKERS for n in ((2,) if quick else WORKERS[name])]
    for name, part, arguments in jobs:
        print(f"measuring {part.__name__} on {name}, {arguments}", file=sys.stderr, flush=True)
        own = Path(tempfile.mkdtemp(dir=folder))
        url = default_url(own) if name == "SQLite" else postgresql.create_database()
        result[part.__name__].append({"database": name, **part(url, own, *arguments)})
    return result


def cost_table(database: str, records: list[dict[str, Any]]) -> Table:
    table = Table("step", "per trial", title=f"{database}: milliseconds, median / p90", title_justify="left")
    for each in records:
        head = f"{each['finished']:,} finished\n{each['waiting']:,} waiting\n{each['paused']} paused"
        table.add_column(head, justify="right", no_wrap=True)
    for step in ("join", *STEPS, "a trial"):
        times = f"{records[0]['steps'][step][0] // records[0]['trials']} x" if step in STEPS else ""
        table.add_row(step, times, *("{1:.1f} / {2:.1f}".format(*each["steps"][step]) for each in records))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test of parts 1 to 3")
    parser.add_argument("--run", action="store_true", help="also run part 4")
    parser.add_argument("--trials", type=int, default=50, help="trials of part 4 (default: 50)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "build" / "storage.json", help="default: build/storage.json"
    )
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    with durable_server() as postgresql, tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {"machine": machine(postgresql), **measure(postgresql, Path(folder), options.quick)}
    console.print(", ".join(f"{key} {value}" for key, value in result["machine"].items()), highlight=False)
    for database in WORKERS:
        console.print(cost_table(database, [each for each in result["costs"] if each["database"] == database]))
    for each in result["throughput"]:
        count = "the count is exact" if each["exact"] else "THE COUNT IS WRONG"
        console.print(
            f"{each['database']}, {each['workers']} workers: {each['trials_per_second']:.1f} trials per second "
            f"over {each['tickets']} trials; {count}, {each['crashed']} workers crashed"
        )
    if options.run:
        result["search"] = run = run_search(options.trials)
        console.print(f"{run['trials']} trials by {run['workers']} workers in {run['seconds']:.0f} worker seconds:")
        console.print(f"{run['share']:.1%} neither training nor evaluation; the goal is under {GOAL:.0%}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
