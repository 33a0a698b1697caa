"""The commands that train and score one network and find the data set: train, evaluate, data."""

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from fmnist.choices import Activation, Optimizer, Tta, is_own
from search.cli.options import (
    UserPath,
    data_dir_option,
    device_option,
    force_option,
    json_option,
    network_dir_option,
    own_network_options,
    score_on_option,
)

if TYPE_CHECKING:
    from fmnist.data import DataSet
    from fmnist.evaluation import Evaluation
    from fmnist.hyperparameters import Hyperparameters, ScoreOn
    from fmnist.training import EpochMetrics


class Hyperparameter(click.Option):
    """An option of a hyperparameter, whose help is that of `Hyperparameters`, read only when it is shown."""

    @property
    def help(self) -> str:
        from fmnist.hyperparameters import explained

        return explained(str(self.name))

    @help.setter
    def help(self, text: str | None) -> None:
        """click sets it to None."""


hyperparameter = partial(click.option, cls=Hyperparameter)


@click.command()
@hyperparameter("--epochs", type=int)
@hyperparameter("--architecture")
@click.option(
    "--set",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    help="A constructor argument of your network; repeatable.",
)
@network_dir_option("working directory")
@hyperparameter("--optimizer", type=click.Choice(get_args(Optimizer)))
@hyperparameter("--learning-rate", type=float)
@hyperparameter("--momentum", type=float)
@hyperparameter("--batch-size", type=int)
@hyperparameter("--filters", type=int)
@hyperparameter("--blocks", type=int)
@hyperparameter("--kernel-size", type=int)
@hyperparameter("--residual", is_flag=True, default=None)
@hyperparameter("--hidden", type=int)
@hyperparameter("--activation", type=click.Choice(get_args(Activation)))
@hyperparameter("--dropout", type=float)
@hyperparameter("--weight-decay", type=float)
@hyperparameter("--l1", type=float)
@hyperparameter("--label-smoothing", type=float)
@hyperparameter("--augmentation", type=float)
@hyperparameter("--augmentation-kind")
@click.option(
    "--tta",
    type=click.Choice(get_args(Tta)),
    default="auto",
    show_default=True,
    help="Test-time augmentation: also score the mirror image; auto: if the augmentation flips.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every random choice.")
@score_on_option("test")
@data_dir_option
@device_option
@click.option(
    "--save",
    type=UserPath(dir_okay=False),
    help="Checkpoint to write.  "
    "[default: fashion_mnist_cnn_full.pth, with the data set's name instead of fashion_mnist for another one]",
)
@force_option
def train(
    tta: "Tta",
    seed: int,
    score_on: "ScoreOn | None",
    data_dir: Path | None,
    device: str,
    save: Path | None,
    force: bool,
    arguments: tuple[str, ...],
    **given: Any,
) -> None:
    """Train one network and save it. Omitted hyperparameters have their default values.

    \b
    Examples:
      fmnist-search train --architecture simple --filters 8 --epochs 3
      fmnist-search train --residual --augmentation-kind crop+flip+erasing
      fmnist-search train --architecture my_net.py:CNNModel --set kernel_size=3
    """
    from fmnist import checkpoint, data, user_code
    from fmnist.device import device_of
    from fmnist.evaluation import classification_report, evaluate
    from fmnist.hyperparameters import check_batch_size
    from fmnist.training import Training
    from search.outputs import CHECKPOINT_MARKS, check_replaceable

    hyperparameters = _hyperparameters({name: value for name, value in given.items() if value is not None}, arguments)
    check_batch_size(hyperparameters.batch_size)
    training = Training(hyperparameters, seed, device_of(device), tta=tta)
    loaded = data.load(data_dir)
    save = save or Path(f"{_file_name(loaded)}_cnn_full.pth")
    check_replaceable(save, CHECKPOINT_MARKS, "overwrite it with --force, or name another with --save", force=force)
    splits = data.split(loaded, score_on or "test")
    for metrics in training.epochs(splits):
        click.echo(test_line(splits.score_on, metrics))
        checkpoint.save(save, training, splits.score_on, loaded)
    with user_code.running(hyperparameters.architecture):
        result = evaluate(training.scored_network, splits.scored.to(training.device))
    click.echo(f"\n{classification_report(result)}\nSaved {save}")


@click.command(short_help="Score a CHECKPOINT.")
@click.argument("checkpoint", type=UserPath(dir_okay=False))
@score_on_option("the images that scored the checkpoint")
@data_dir_option
@json_option
@own_network_options
def evaluate(checkpoint: Path, score_on: "ScoreOn | None", data_dir: Path | None, as_json: bool) -> None:
    """Score a CHECKPOINT or an ensemble: accuracy, classification report, confusion matrix.

    \b
    Examples:
      fmnist-search evaluate fashion_mnist_cnn_full.pth
      fmnist-search evaluate studies/cnn/ensemble.pt
    """
    from fmnist import data, evaluation, user_code
    from fmnist.ensemble import load

    saved = load(checkpoint)
    loaded = data.load(data_dir)
    if loaded.fingerprint != saved.data_fingerprint:
        click.echo(f"Note: trained on {saved.data_set}, scored on {loaded.name}.", err=True)
    splits = data.split(loaded, score_on or saved.score_on)
    network = saved.network()
    with user_code.running(saved.architecture):
        result = evaluation.evaluate(network, splits.scored)
    if as_json:
        click.echo(json.dumps(evaluation.as_json(result) | {"score_on": splits.score_on}))
    else:
        click.echo(f"{test_line(splits.score_on, result)}\n")
        click.echo(f"{evaluation.classification_report(result)}\n{evaluation.confusion_table(result)}")


@click.command()
@data_dir_option
def data(data_dir: Path | None) -> None:
    """Find or download the data set, verify it, and print its folder.

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


def _file_name(data_set: "DataSet") -> str:
    name = data_set.name if data_set.name == "Fashion-MNIST" else data_set.folder.resolve().name
    return re.sub(r"\W+", "_", name.lower()).strip("_")[:40] or "data"


def test_line(score_on: str, scores: "EpochMetrics | Evaluation") -> str:
    """One line with the loss and accuracy on a set of images, in the write-up's format."""
    share = f"{scores.correct}/{scores.total} ({100 * scores.accuracy:.0f}%)"
    return f"{score_on.capitalize()} set: Average loss: {scores.loss:.4f}, Accuracy: {share}"


def _hyperparameters(given: dict[str, Any], arguments: tuple[str, ...]) -> "Hyperparameters":
    from pydantic import ValidationError

    from fmnist import own_network
    from fmnist.hyperparameters import TRAINING, Hyperparameters
    from search.study.mistakes import explain

    try:
        own = is_own(given.get("architecture", ""))
        taken = {name: value for name, value in given.items() if name in TRAINING or not own}
        hyperparameters = Hyperparameters(**taken)
    except ValidationError as error:
        wrong = [(str(mistake.place[0]), mistake.text) for mistake in explain(error, Hyperparameters, given)]
        raise click.UsageError("\n".join(f"--{name.replace('_', '-')}: {text}" for name, text in wrong)) from error
    if not own:
        if arguments:
            raise click.UsageError(f"--set {arguments[0]}: needs a network of your own; name it with --architecture")
        return hyperparameters
    network = own_network.load(hyperparameters.architecture)
    values = {name: value for name, value in given.items() if name not in TRAINING} | network.parsed(arguments)
    return hyperparameters.model_copy(update={"network": values})
