"""The commands that use a trained network: predict, export."""

import json
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from search.cli.options import UserPath, force_option, json_option, own_network_options

if TYPE_CHECKING:
    from fmnist.prediction import NetworkInput, Prediction


GUESSED = "a guess: of held-out images with a probability this low, fewer than half are classified correctly"


@click.command(short_help="Classify images.")
@click.argument("checkpoint", type=UserPath(dir_okay=False))
@click.argument("images", type=UserPath(), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--invert", is_flag=True, help="Negate the object's tones, whatever the background.")
@click.option("--raw", is_flag=True, help="Classify whole pictures: find no object. --invert: dark clothes on white.")
@click.option(
    "--save-input",
    type=UserPath(file_okay=False),
    metavar="DIR",
    help="Folder for the 28 x 28 pixels that the network sees, a PNG file for each image.",
)
@json_option
@own_network_options
@click.pass_context
def predict(
    context: click.Context,
    checkpoint: Path,
    images: tuple[Path, ...],
    invert: bool,
    raw: bool,
    save_input: Path | None,
    as_json: bool,
) -> None:
    """Classify each IMAGE: print its most likely class, the probability, and what the network saw of it.

    CHECKPOINT may be an ensemble. An IMAGE is a PNG, JPEG, WebP, GIF, BMP or TIFF file: a photo of one object on
    a uniform or transparent background, or 28 x 28 pixels like Fashion-MNIST's. Without an object, the whole
    picture is classified, with a warning. Unreadable images are reported, the others classified; the exit code
    is then 1.

    \b
    Examples:
      fmnist-search predict fashion_mnist_cnn_full.pth boot.png shirt.jpg
      fmnist-search predict fashion_mnist_cnn_full.pth shirt.jpg --save-input seen
    """
    from fmnist import prediction, user_code
    from fmnist.ensemble import load

    saved = load(checkpoint)
    network = saved.network()
    read, errors = prediction.read_images(images, invert, raw)
    if save_input:
        save_inputs(save_input, read)
    with user_code.running(saved.architecture):
        predictions = prediction.predict(network, [seen.pixels for _, seen in read]) if read else []
    classified = [Classified(path, seen, predicted) for (path, seen), predicted in zip(read, predictions, strict=True)]
    click.echo(
        json.dumps([each.as_json() for each in classified]) if as_json else prediction_table(classified), nl=as_json
    )
    for each in classified:
        if each.warning:
            click.echo(f"Warning: {click.format_filename(each.path)}: {each.warning}", err=True)
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


@dataclass(frozen=True)
class Classified:
    """An image file, what the network saw of it, and its prediction."""

    path: Path
    seen: "NetworkInput"
    prediction: "Prediction"

    @property
    def warning(self) -> str | None:
        from fmnist.prediction import GUESS

        if self.seen.warning or self.prediction.probability >= GUESS:
            return self.seen.warning
        return GUESSED

    def as_json(self) -> dict[str, Any]:
        return {
            "image": str(self.path),
            "class": self.prediction.class_name,
            "probability": self.prediction.probability,
            "probabilities": self.prediction.probabilities,
            "input": self.seen.action,
            "box": self.seen.box,
            "warning": self.warning,
        }


def prediction_table(classified: list[Classified]) -> str:
    """Predictions as a table with a line per image: file, class, probability, what the network saw."""
    rows = [
        (
            click.format_filename(each.path),
            each.prediction.class_name,
            f"{100 * each.prediction.probability:.1f} %",
            each.seen.action,
        )
        for each in classified
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        f"{file:<{widths[0]}}  {name:<{widths[1]}}  {share:>{widths[2]}}  {action}\n"
        for file, name, share, action in rows
    )


def save_inputs(folder: Path, read: "list[tuple[Path, NetworkInput]]") -> None:
    """Write what the network sees of each image to `folder`, as FILE.png; a number tells equal names apart.

    Raises:
        NotOurs: a file of another program would be overwritten; nothing is written.
        OSError: the folder or a file cannot be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from fmnist.files import write_atomically
    from search.outputs import INPUT_MARKS, check_replaceable

    targets: dict[Path, NetworkInput] = {}
    for path, seen in read:
        names = (f"{path.name}{number}.png" for number in chain([""], (f"-{again}" for again in count(2))))
        targets[next(folder / name for name in names if folder / name not in targets)] = seen
    for target in targets:
        check_replaceable(target, INPUT_MARKS, "name another folder with --save-input")
    mark = PngInfo()
    mark.add_text("Software", "fmnist-search predict")
    for target, seen in targets.items():
        content = BytesIO()
        Image.fromarray(seen.pixels[0].numpy()).save(content, "PNG", pnginfo=mark)
        write_atomically(target, content.getvalue())
