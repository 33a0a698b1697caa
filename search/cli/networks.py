"""The commands on one network and its data: train, evaluate, predict, export, data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from search.cli.options import data_dir_option, device_of, device_option, json_option, score_on_option

if TYPE_CHECKING:
    from fmnist.evaluation import Evaluation
    from fmnist.hyperparameters import Hyperparameters, ScoreOn
    from fmnist.prediction import Prediction
    from fmnist.training import EpochMetrics


@click.command()
@click.option("--epochs", type=int)
@click.option("--architecture", type=click.Choice(["simple", "cnn", "resnet", "transformer"]))
@click.option("--learning-rate", type=float)
@click.option("--batch-size", type=int)
@click.option("--filters", type=int)
@click.option("--blocks", type=int)
@click.option("--dropout", type=float)
@click.option("--weight-decay", type=float)
@click.option("--l1", type=float)
@click.option("--label-smoothing", type=float)
@click.option("--augmentation", type=float)
@click.option("--augmentation-kind", type=click.Choice(["flip", "rotation", "both", "crop", "jitter", "erasing"]))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@score_on_option("test")
@data_dir_option
@device_option
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    default="fmnist_cnn_full.pth",
    show_default=True,
    help="Checkpoint to write.",
)
def train(seed: int, score_on: "ScoreOn | None", data_dir: Path | None, device: str, save: Path, **given: Any) -> None:
    """Train one network and save it. What is not given is the default.

    \b
    Example:
      fmnist-search train --architecture simple --filters 8 --epochs 3
    """
    from fmnist import checkpoint, data
    from fmnist.evaluation import classification_report, evaluate
    from fmnist.training import Training

    training = Training(_hyperparameters(given), seed, device_of(device))
    loaded = data.load(data_dir)
    splits = data.split(loaded, score_on or "test")
    for metrics in training.epochs(splits):
        click.echo(test_line(splits.score_on, metrics))
        checkpoint.save(save, training, splits.score_on, loaded)
    result = evaluate(training.scored_network, splits.scored.to(training.device))
    click.echo(f"\n{classification_report(result)}\nSaved {save}")


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, dir_okay=False))
@score_on_option("as the checkpoint was scored")
@data_dir_option
@json_option
def evaluate(checkpoint: Path, score_on: "ScoreOn | None", data_dir: Path | None, as_json: bool) -> None:
    """Score a CHECKPOINT: accuracy, classification report, confusion matrix.

    \b
    Example:
      fmnist-search evaluate fmnist_cnn_full.pth
    """
    from fmnist import data, evaluation
    from fmnist.checkpoint import load

    saved = load(checkpoint)
    loaded = data.load(data_dir)
    if loaded.fingerprint != saved.data_fingerprint:
        click.echo(f"Note: it was trained on {saved.data_set} and is scored on {loaded.name}.", err=True)
    splits = data.split(loaded, score_on or saved.score_on)
    result = evaluation.evaluate(saved.network(), splits.scored)
    if as_json:
        click.echo(json.dumps(evaluation.as_json(result) | {"score_on": splits.score_on}))
    else:
        click.echo(f"{test_line(splits.score_on, result)}\n")
        click.echo(f"{evaluation.classification_report(result)}\n{evaluation.confusion_table(result)}")


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--invert", is_flag=True, help="The images show dark clothes on white, as photographs of products do.")
@json_option
@click.pass_context
def predict(context: click.Context, checkpoint: Path, images: tuple[Path, ...], invert: bool, as_json: bool) -> None:
    """Say what clothes each IMAGE shows: its most likely class, and the probability.

    An IMAGE is a PNG or JPEG file of any size, in grey or colour. Where one cannot be read,
    the others are answered all the same, and the exit code is 1.

    \b
    Example:
      fmnist-search predict fmnist_cnn_full.pth boot.png shirt.jpg --invert
    """
    import torch

    from fmnist import prediction
    from fmnist.checkpoint import load

    network = load(checkpoint).network()
    read, errors = prediction.read_images(images, invert)
    answers = prediction.predict(network, torch.stack([image for _, image in read])) if read else []
    named = [(path, answer) for (path, _), answer in zip(read, answers, strict=True)]
    click.echo(
        json.dumps([prediction_json(*pair) for pair in named]) if as_json else prediction_table(named), nl=as_json
    )
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    context.exit(1 if errors else 0)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", show_default=True, expose_value=False)
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: the checkpoint's name with .onnx]",
)
def export(checkpoint: Path, to: Path | None) -> None:
    """Write the network of a CHECKPOINT for other runtimes, and check that they agree with torch.

    The ONNX graph takes raw pixels, 0 to 255, `images` (batch, 1, 28, 28) float32, and gives
    `logits` (batch, 10). It needs the extra `onnx`.

    \b
    Example:
      fmnist-search export fmnist_cnn_full.pth --format onnx --to boots.onnx
    """
    from fmnist.checkpoint import load
    from fmnist.export import BATCHES, write_onnx

    target = to or checkpoint.with_suffix(".onnx")
    if target.resolve() == checkpoint.resolve():
        raise click.UsageError(f"{target} is the checkpoint itself; name another file with --to")
    difference = write_onnx(load(checkpoint), target)
    click.echo(
        f"Saved {target}\n"
        f"Largest difference of logits between onnxruntime and torch: {difference:.1e} "
        f"({sum(BATCHES)} random images, in batches of {', '.join(map(str, BATCHES))})"
    )


@click.command()
@data_dir_option
def data(data_dir: Path | None) -> None:
    """Find or fetch the data set, verify it, and say where it is.

    \b
    Example:
      fmnist-search data --data-dir ~/fashion-mnist
    """
    from fmnist.data import load

    loaded = load(data_dir)
    click.echo(
        f"{loaded.name}: {len(loaded.train):,} training and {len(loaded.test):,} test images, "
        f"verified, in {loaded.folder}"
    )


def test_line(score_on: str, scores: "EpochMetrics | Evaluation") -> str:
    """The write-up's line on a set of images."""
    share = f"{scores.correct}/{scores.total} ({100 * scores.accuracy:.0f}%)"
    return f"{score_on.capitalize()} set: Average loss: {scores.loss:.4f}, Accuracy: {share}"


def prediction_table(named: "list[tuple[Path, Prediction]]") -> str:
    """A line an image, in columns: its file, class and probability."""
    rows = [
        (click.format_filename(path), prediction.class_name, f"{100 * prediction.probability:.1f} %")
        for path, prediction in named
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(f"{file:<{widths[0]}}  {name:<{widths[1]}}  {share:>{widths[2]}}\n" for file, name, share in rows)


def prediction_json(path: Path, prediction: "Prediction") -> dict[str, Any]:
    """The same as plain values, with the probability of each class."""
    return {
        "image": str(path),
        "class": prediction.class_name,
        "probability": prediction.probability,
        "probabilities": prediction.probabilities,
    }


def _hyperparameters(given: dict[str, Any]) -> "Hyperparameters":
    """The default configuration with the given values.

    Raises:
        click.UsageError: a value is out of its bounds.
    """
    from pydantic import ValidationError

    from fmnist.hyperparameters import Hyperparameters
    from search.definition import explain

    try:
        return Hyperparameters(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise click.UsageError(f"--{explain(error).replace('_', '-')}") from error
