"""The commands that use a trained network: predict, export."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from search.cli.options import UserPath, force_option, json_option, own_network_options

if TYPE_CHECKING:
    from fmnist.prediction import Prediction


@click.command(short_help="Classify images.")
@click.argument("checkpoint", type=UserPath(dir_okay=False))
@click.argument("images", type=UserPath(), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--invert", is_flag=True, help="The images show dark clothes on white, like product photographs.")
@json_option
@own_network_options
@click.pass_context
def predict(context: click.Context, checkpoint: Path, images: tuple[Path, ...], invert: bool, as_json: bool) -> None:
    """Classify each IMAGE: print its most likely class and the probability.

    CHECKPOINT may be an ensemble. An IMAGE is a PNG or JPEG file of any size, greyscale or colour. Unreadable
    images are reported, the others classified; the exit code is then 1.

    \b
    Example:
      fmnist-search predict fashion_mnist_cnn_full.pth boot.png shirt.jpg --invert
    """
    from fmnist import prediction, user_code
    from fmnist.ensemble import load

    saved = load(checkpoint)
    network = saved.network()
    read, errors = prediction.read_images(images, invert)
    with user_code.running(saved.architecture):
        predictions = prediction.predict(network, [image for _, image in read]) if read else []
    named = [(path, predicted) for (path, _), predicted in zip(read, predictions, strict=True)]
    click.echo(
        json.dumps([prediction_json(*pair) for pair in named]) if as_json else prediction_table(named), nl=as_json
    )
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    context.exit(1 if errors else 0)


@click.command(short_help="Write a CHECKPOINT's network as ONNX.")
@click.argument("checkpoint", type=UserPath(dir_okay=False))
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", show_default=True, expose_value=False)
@click.option(
    "--to",
    type=UserPath(dir_okay=False),
    help="File to write.  [default: the checkpoint's name with .onnx]",
)
@force_option
@own_network_options
def export(checkpoint: Path, to: Path | None, force: bool) -> None:
    """Export the network of a CHECKPOINT or an ensemble to ONNX, and check that onnxruntime agrees with torch.

    The graph takes raw pixels, 0 to 255, `images` (batch, 1, 28, 28) float32, and returns `logits` (batch, 10),
    whose softmax gives the probabilities. Needs the extra `onnx`.

    \b
    Example:
      fmnist-search export fashion_mnist_cnn_full.pth --format onnx --to boots.onnx
    """
    from fmnist import user_code
    from fmnist.ensemble import load
    from fmnist.export import BATCHES, write_onnx
    from search.outputs import ONNX_MARKS, check_replaceable

    saved = load(checkpoint)
    target = to or checkpoint.with_suffix(".onnx")
    if target.resolve() == checkpoint.resolve():
        raise click.UsageError(f"{target} is the checkpoint itself; name another file with --to")
    check_replaceable(target, ONNX_MARKS, "overwrite it with --force, or name another with --to", force=force)
    with user_code.running(saved.architecture):
        difference = write_onnx(saved, target)
    click.echo(
        f"Saved {target}\n"
        f"Largest difference between the logits of onnxruntime and torch: {difference:.1e} "
        f"({sum(BATCHES)} random images, in batches of {', '.join(map(str, BATCHES))})"
    )


def prediction_table(named: "list[tuple[Path, Prediction]]") -> str:
    """Predictions as a table with a line per image: file, class, probability."""
    rows = [
        (click.format_filename(path), prediction.class_name, f"{100 * prediction.probability:.1f} %")
        for path, prediction in named
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(f"{file:<{widths[0]}}  {name:<{widths[1]}}  {share:>{widths[2]}}\n" for file, name, share in rows)


def prediction_json(path: Path, prediction: "Prediction") -> dict[str, Any]:
    """A prediction as JSON values, with the probability of each class."""
    return {
        "image": str(path),
        "class": prediction.class_name,
        "probability": prediction.probability,
        "probabilities": prediction.probabilities,
    }
