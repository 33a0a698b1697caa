"""The benchmarks run: they use more of the code's inside than others do, and would break unnoticed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import replay

ROOT = Path(__file__).resolve().parent.parent


def test_the_storage_benchmark_runs_and_counts_exactly(tmp_path: Path) -> None:
    result = tmp_path / "storage.json"
    call = [sys.executable, "-m", "benchmarks.storage", "--quick", "--json", str(result)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "THE COUNT IS WRONG" not in done.stdout
    assert json.loads(result.read_text())


def curves(count: int) -> list[replay.Curve]:
    """Learning curves whose order is the same at every report: the higher the index, the better."""
    steps = [25, 50, *range(100, 900, 100)]
    random = np.random.default_rng(0)
    return [
        replay.Curve(
            index=index,
            parameters={
                "learning_rate": float(random.uniform(0.001, 0.02)),
                "dropout": float(random.uniform(0, 0.5)),
                "filters": int(random.choice([8, 16, 24, 32])),
                "augmentation": float(random.uniform(0, 1)),
            },
            steps=steps,
            accuracies=[0.5 + index / 1000 + 0.0001 * step for step in steps],
            seconds=[2.5, 2.5, 5.0, *[10.0] * 7],
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_replay_without_a_pruner_ends_every_trial_and_misses_none(sampler: str) -> None:
    found = replay.search(curves(60), "none", sampler, seed=1)
    assert (found.saved, found.complete, found.regret) == (0, replay.TRIALS, 0)
    assert len(found.mistakes) == replay.TRIALS * replay.BEST_SHARE
    assert not any(pruned for _, pruned in found.mistakes)


def test_a_replayed_halving_saves_and_counts_what_it_ended_wrongly() -> None:
    results = [replay.search(curves(60), "halving 4, from epoch 0.25", "random", seed) for seed in range(3)]
    again = replay.search(curves(60), "halving 4, from epoch 0.25", "random", 0)
    assert again == results[0]
    assert results[1] != results[0]
    for found in results:
        assert 0.5 < found.saved < 1
        assert found.complete < replay.TRIALS / 2
        assert found.regret >= 0
    share, low, high = replay.mistakes(results)
    pruned = [pruned for found in results for _, pruned in found.mistakes]
    assert share == pytest.approx(sum(pruned) / len(pruned))
    assert low <= share <= high
