"""What the benchmarks reckon with, and that they go on where they were interrupted."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner
from optuna.distributions import FloatDistribution
from rich.console import Console
from torch.nn import functional as F

from benchmarks import photos, replay, stock
from benchmarks.outcome import Ended, Results, Searched, reached, records
from benchmarks.search import reached_stock
from benchmarks.stock_search import begin_with_default, stock_search
from fmnist import checkpoint
from fmnist.architectures import build
from fmnist.data import DataSet, LabelledImages, split, standardize
from fmnist.hyperparameters import Hyperparameters
from fmnist.prediction import network_input
from fmnist.training import Training
from search.study.definition import StudyDefinition
from tests.factories import definition
from tests.fmnist.test_photo import GARMENT

ROOT = Path(__file__).resolve().parent.parent


def test_the_storage_benchmark_runs_and_counts_exactly(tmp_path: Path) -> None:
    result = tmp_path / "storage.json"
    call = [sys.executable, "-m", "benchmarks.storage", "--quick", "--json", str(result)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "THE COUNT IS WRONG" not in done.stdout
    assert json.loads(result.read_text())


def curves(count: int) -> replay.Recorded:
    """Learning curves whose order is the same at every report: the higher the index, the better."""
    defined = StudyDefinition.model_validate(
        {
            "defaults": {"learning_rate": 0.005, "epochs": 7, "filters": 24},
            "space": {
                "epochs": {"low": 3, "high": 7},
                "learning_rate": {"low": 0.001, "high": 0.02, "log": True},
                "dropout": {"low": 0.0, "high": 0.5},
                "filters": {"low": 8, "high": 24, "step": 8},
                "augmentation": {"low": 0.0, "high": 0.5},
            },
        }
    )
    steps = [25, 50, *range(100, 900, 100)]
    random = np.random.default_rng(0)
    drawn = [
        replay.Curve(
            index=index,
            parameters={
                "learning_rate": float(random.uniform(0.001, 0.02)),
                "dropout": float(random.uniform(0, 0.5)),
                "filters": int(random.choice([8, 16, 24])),
                "augmentation": float(random.uniform(0, 0.5)),
            },
            steps=steps,
            accuracies=[0.5 + index / 1000 + 0.0001 * step for step in steps],
            seconds=[2.5, 2.5, 5.0, *[10.0] * 7],
        )
        for index in range(count)
    ]
    return replay.Recorded(defined, drawn)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_replay_without_a_pruner_ends_every_trial_and_misses_none(sampler: str) -> None:
    found = replay.search(curves(60), "none", sampler, seed=1)
    assert (found.saved, found.complete, found.regret) == (0, replay.TRIALS, 0)
    assert len(found.mistakes) == replay.TRIALS * replay.BEST_SHARE
    assert not any(pruned for _, pruned in found.mistakes)


def test_a_replay_that_pauses_trains_few_to_the_end_and_the_best_of_them() -> None:
    results = [
        replay.search(curves(60), replay.FREEZE, sampler, seed) for sampler in ("random", "tpe") for seed in (0, 1)
    ]
    assert replay.search(curves(60), replay.FREEZE, "tpe", 1) == results[-1]
    for found in results:
        assert 0.4 < found.saved < 1
        assert 1 <= found.complete < replay.TRIALS / 3
        assert found.regret < 1.5


def test_recorded_curves_carry_their_own_study(tmp_path: Path) -> None:
    """The default study of today may be another."""
    file = tmp_path / "curves.jsonl"
    recorded = curves(60)
    study = recorded.definition.model_dump(mode="json", include={"defaults", "space", "seed"})
    file.write_text("\n".join(json.dumps(each) for each in ({"study": study}, *map(asdict, recorded.curves))))
    found = replay.read(file)
    assert found == recorded
    assert replay.read(Path(replay.__file__).with_name("curves.jsonl")).definition.space["filters"][0].high == 24


def test_a_replayed_slack_pruner_ends_less_of_the_best_the_wider_it_is() -> None:
    narrow, wide = (
        [replay.search(curves(60), f"slack {slack}", "random", seed) for seed in range(3)] for slack in (0.05, 0.15)
    )
    for one, other in zip(narrow, wide, strict=True):
        assert one.saved > other.saved
        assert sum(pruned for _, pruned in one.mistakes) >= sum(pruned for _, pruned in other.mistakes)


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


def test_a_search_benchmark_goes_on_with_what_is_on_record_and_refuses_what_was_made_otherwise(tmp_path: Path) -> None:
    results = Results(tmp_path / "search.json", {"on": "Tuesday", "machine": "this"})
    trials = [Ended(at=20.0, epochs=3, value=0.9), Ended(at=30.0, epochs=0.5, value=None)]
    results.searches["stock"] = Searched("stock", 30.0, trials, {"filters": 8}, retrained=[0.89])
    results.save()
    again = Results(results.file, {"on": "Wednesday", "machine": "this"})
    assert again.searches == results.searches
    with pytest.raises(SystemExit, match="--output"):
        Results(results.file, {"on": "Tuesday", "machine": "that"})


def test_the_best_so_far_is_that_of_complete_trials_in_the_order_of_their_end() -> None:
    trials = [Ended(10.0, 2, 0.8), Ended(12.0, 0.25, None), Ended(30.0, 4, 0.7), Ended(40.0, 3, 0.9)]
    assert list(records(trials)) == [(trials[0], 2), (trials[3], 9.25)]
    assert reached(trials, 0.85) == (40.0, 9.25)
    assert reached(trials, 0.95) is None


def test_the_stock_loop_learns_and_heeds_label_smoothing(tiny: DataSet) -> None:
    splits = split(tiny, "test")
    tuned = Hyperparameters(architecture="simple", filters=4, epochs=2, batch_size=16, learning_rate=0.003)
    smoothed = tuned.model_copy(update={"label_smoothing": 0.5})
    accuracies = list(stock.epochs(tuned, splits, seed=0))
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.3
    assert list(stock.epochs(tuned, splits, seed=0)) == accuracies
    assert list(stock.epochs(smoothed, splits, seed=0)) != accuracies


def test_the_stock_loop_moves_images_by_as_many_pixels_as_a_crop_does(tiny: DataSet) -> None:
    splits = split(tiny, "test")
    cropping = Hyperparameters(augmentation_kind="crop", augmentation=0.25, batch_size=len(splits.train))
    batches, _ = stock.loaders(splits, cropping, workers=0)
    images, _ = next(iter(batches))
    originals = standardize(splits.train.images)
    moved = F.pad(originals, (1, 1, 1, 1), value=originals.min().item())
    views = torch.cat([moved[:, :, down : down + 28, right : right + 28] for down in range(3) for right in range(3)])
    rows = {tuple(view.flatten().tolist()) for view in views.mul(100).round()}
    shown = [tuple(image.flatten().tolist()) for image in images.mul(100).round()]
    assert all(image in rows for image in shown)
    unmoved = {tuple(view.flatten().tolist()) for view in originals.mul(100).round()}
    assert 0 < sum(image in unmoved for image in shown) < len(shown) / 2


@pytest.mark.parametrize("kind", ["none", "flip", "crop+flip", "crop+flip+erasing", "both"])
def test_the_stock_loop_makes_the_changes_that_a_kind_names(tiny: DataSet, kind: str) -> None:
    splits = split(tiny, "test")
    plain, changed = (
        next(iter(stock.loaders(splits, Hyperparameters(augmentation_kind=each, augmentation=1.0), workers=0)[0]))[0]
        for each in ("none", kind)
    )
    background = standardize(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).min()
    assert changed.shape == plain.shape
    dark = (changed.sub(background).abs() < 1e-5).float().mean()
    assert (dark > plain.sub(background).abs().lt(1e-5).float().mean() + 0.02) == ("erasing" in kind)


def test_the_stock_network_has_as_many_weights_as_ours_with_residual_convolutions_too() -> None:
    for residual in (False, True):
        ours = Hyperparameters(filters=8, blocks=3, residual=residual)
        biases = sum(8 * 2**number for number in range(3)) + residual * sum(8 * 2**number for number in range(2))
        counted = [sum(weights.numel() for weights in each.parameters()) for each in (stock.network(ours), build(ours))]
        assert counted[0] - counted[1] == biases  # batch norm makes those of convolutions useless


def test_stock_is_reached_by_the_first_record_whose_fresh_trainings_are_as_good() -> None:
    stocks = Searched("stock", 900.0, [Ended(800.0, 4, 0.91)], {}, retrained=[0.9, 0.9])
    trials = [
        Ended(10.0, 2, 0.92, retrained=[0.89, 0.9]),  # luck
        Ended(20.0, 2, 0.91, retrained=[0.95, 0.95]),  # no record
        Ended(30.0, 2, 0.93, retrained=[0.9, 0.91]),
    ]
    assert reached_stock(Searched("ours", 30.0, trials, {}), stocks) == 30.0
    assert reached_stock(Searched("ours", 30.0, trials[:2], {}), stocks) is None


def test_a_stock_search_that_was_interrupted_goes_on_and_has_the_default_among_its_trials(
    tiny: DataSet, tmp_path: Path
) -> None:
    splits = split(tiny, "test")
    defined = definition(
        defaults={"architecture": "simple", "epochs": 1, "filters": 4, "batch_size": 16, "learning_rate": 0.003},
        space={"learning_rate": {"low": 0.0001, "high": 0.01}},
    )
    file, console = tmp_path / "stock.db", Console(quiet=True)
    first = stock_search(defined, splits, 2, file, console)
    again = stock_search(defined, splits, 5, file, console)
    assert len(first.trials) == 2
    assert again.trials[:2] == first.trials
    assert len(again.trials) == 5
    assert again.seconds > first.seconds
    study = optuna.load_study(study_name="stock", storage=f"sqlite:///{file}")
    rates = [trial.params["learning_rate"] for trial in study.trials]
    assert rates.count(0.003) == 1
    assert len(set(rates)) == 5


def test_a_default_that_was_interrupted_is_tried_again() -> None:
    study = optuna.create_study()
    begin_with_default(study, {"dropout": 0.1})
    begin_with_default(study, {"dropout": 0.1})
    assert study.ask({"dropout": FloatDistribution(0, 1)}).params == {"dropout": 0.1}
    begin_with_default(study, {"dropout": 0.1})
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def test_made_photos_show_the_image_and_unusable_ones_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "SIZES", (400, 520))
    images = LabelledImages(torch.from_numpy(GARMENT)[None, None], torch.zeros(1, dtype=torch.int64))
    made = photos.make_photos(images, 1, tmp_path, np.random.default_rng(4))
    assert len(made) == 10
    for photo in made:
        seen = network_input(photo["path"])
        assert seen.warning is None, photo
        if "mixed" in photo["kind"]:
            assert np.corrcoef(seen.pixels.flatten(), GARMENT.flatten())[0, 1] > 0.9, photo
        assert np.corrcoef(seen.pixels.flatten() > 0, GARMENT.flatten() > 0)[0, 1] > 0.7, photo
    unusable = photos.make_unusable(1, tmp_path, np.random.default_rng(5))
    assert all(network_input(picture["path"]).warning for picture in unusable)


def test_the_photo_benchmark_counts_each_photo_once(
    tiny: DataSet, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_DATA", str(tiny_folder))
    monkeypatch.setattr(photos, "SIZES", (400, 520))
    training = Training(Hyperparameters(architecture="simple", filters=4, epochs=1), seed=1)
    list(training.epochs(split(tiny, "validation")))
    checkpoint.save(tmp_path / "net.pt", training, "validation", tiny)
    output = tmp_path / "photos.json"
    arguments = [str(tmp_path / "net.pt"), "--number", "2", "--json", str(output)]
    result = CliRunner().invoke(photos.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(output.read_text())
    assert (len(record["photos"]), len(record["unusable"])) == (20, 6)
    assert sum(images for _, images, _ in record["confidences"]) == len(tiny.test)
