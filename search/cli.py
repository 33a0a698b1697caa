"""The commands of fmnist-search. Each parses, calls one function, and prints.

Heavy modules are imported inside the commands, so that --help answers at once.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fmnist.errors import ExpectedError

if TYPE_CHECKING:
    import optuna
    import torch

    from fmnist.evaluation import Evaluation
    from fmnist.hyperparameters import Hyperparameters
    from fmnist.training import EpochMetrics

Command = TypeVar("Command", bound=Callable[..., Any])

SAMPLERS = ("tpe", "gp", "random", "grid", "qmc")
PRUNERS = ("halving", "hyperband", "median", "percentile", "none")


class ExpectedFailure(click.ClickException):
    """An error that the user can mend, shown as one line."""

    def __init__(self, error: ExpectedError | OSError) -> None:
        super().__init__(" ".join(str(error).split()))
        self.exit_code = getattr(error, "exit_code", 1)  # type: ignore[misc]  # click reads the instance's


class Group(click.Group):
    """Commands in the order in which a user meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ExpectedError, OSError) as error:
            raise ExpectedFailure(error) from error


def data_dir_option(command: Command) -> Command:
    """Where the data set is looked for."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the four Fashion-MNIST files.  "
        "[default: FMNIST_DATA, else user cache, Debian's package, or download]",
    )(command)


def storage_options(command: Command) -> Command:
    """Where studies are: their database and their files."""
    command = click.option(
        "--storage",
        envvar="FMNIST_SEARCH_STORAGE",
        help="Database: sqlite:///FILE or postgresql://USER@HOST/DB.  [default: studies.db in the output folder]",
    )(command)
    return click.option(
        "--output",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of outputs; each study has a folder of its name there.  [default: ./studies]",
    )(command)


def _study_name(_context: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """A study's name is that of its folder too."""
    if name is not None and (not name.strip() or name.startswith(".") or {"/", "\\"} & set(name)):
        raise click.BadParameter(f"{name!r} cannot name a folder; leave out slashes and a leading dot")
    return name


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


study_argument = click.argument("study", default="cnn")
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to train; auto takes an accelerator if there is one.",
)
score_on_option = click.option(
    "--score-on",
    type=click.Choice(["test", "validation"]),
    help="Images that score: the test set, or a sixth of the training set.  [default: the study's, else test]",
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fmnist-search")
def main() -> None:
    """Find good hyperparameters for a Fashion-MNIST network.

    \b
    Start here:
      fmnist-search run --trials 50
    """


@main.command()
@click.argument("study", default="cnn")
@click.option("--trials", type=click.IntRange(1), help="Finished trials to reach.  [default: as the study says]")
@click.option("--workers", type=click.IntRange(1, 256), help="Worker processes.  [default: one a core]")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds after which no trial is begun.")
@storage_options
@click.option("--name", callback=_study_name, help="Name of the study in the database.  [default: the study file's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of every random choice.  [default: as the study says]")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="How parameters are chosen.  [default: as the study says]")
@click.option("--pruner", type=click.Choice(PRUNERS), help="How trials are pruned.  [default: as the study says]")
@score_on_option
@data_dir_option
@device_option
@click.option("--quiet", is_flag=True, help="Print only the result.")
def run(
    study: str,
    trials: int | None,
    workers: int | None,
    timeout: float | None,
    storage: str | None,
    output: Path | None,
    name: str | None,
    data_dir: Path | None,
    device: str,
    quiet: bool,
    **overrides: Any,
) -> None:
    """Search: bring STUDY (a name or a .toml file) to a number of finished trials.

    Run it again to go on where it was: the same number of trials finishes what was
    begun, a larger one adds the difference.

    \b
    Examples:
      fmnist-search run --trials 50
      fmnist-search run my-study.toml --workers 4 --timeout 600
    """
    from rich.console import Console

    from search import definition, outcome
    from search.engines.local import cores
    from search.report import write
    from search.run import RunSettings
    from search.run import run as search

    path = definition.locate(study)
    wanted = definition.read(path, trials=trials, **overrides)
    study_name = name or path.stem
    root = output or Path("studies")
    settings = RunSettings(
        name=study_name,
        trials=wanted.trials,
        storage=_url(storage, output),
        folder=root / study_name,
        data_dir=data_dir,
        device=_device(device).type,
        workers=workers or cores(),
        timeout=timeout,
        quiet=quiet,
    )
    console = Console()
    result = search(wanted, settings, console)
    written = (
        write(result.study, settings.folder, settings.folder / "report.html", data_dir) if result.drained else None
    )
    outcome.show(console, result, settings, written)
    if result.interrupted:
        raise SystemExit(130)


@main.command()
@study_argument
@storage_options
@json_option
def status(study: str, storage: str | None, output: Path | None, as_json: bool) -> None:
    """Show how far a study is: trials by state, the best so far.

    \b
    Example:
      fmnist-search status cnn --json
    """
    from rich.console import Console

    from search import outcome
    from search.summary import summarize

    with _study(study, storage, output) as (opened, folder):
        summary = summarize(opened, folder)
    if as_json:
        click.echo(json.dumps(summary.as_json()))
    else:
        outcome.show_status(Console(), summary)


@main.command()
@study_argument
@storage_options
@json_option
def best(study: str, storage: str | None, output: Path | None, as_json: bool) -> None:
    """Show a study's best complete trial and where its checkpoint is.

    \b
    Example:
      fmnist-search best cnn
    """
    from dataclasses import asdict

    from rich.console import Console

    from search import outcome
    from search.summary import summarize

    with _study(study, storage, output) as (opened, folder):
        summary = summarize(opened, folder)
    if as_json:
        click.echo(json.dumps(asdict(summary.best) if summary.best else None))
    else:
        outcome.show_best(Console(), summary)


@main.command()
@study_argument
@storage_options
@data_dir_option
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: report.html in the study's folder]",
)
def report(study: str, storage: str | None, output: Path | None, data_dir: Path | None, to: Path | None) -> None:
    """Write a study's report: one HTML file that needs no network.

    \b
    Example:
      fmnist-search report cnn --to report.html
    """
    from search.report import write

    with _study(study, storage, output) as (opened, folder):
        click.echo(write(opened, folder, to or folder / "report.html", data_dir))


@main.command()
@storage_options
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port on 127.0.0.1.")
def dashboard(storage: str | None, output: Path | None, port: int) -> None:
    """Serve optuna-dashboard for the database, to this machine only.

    \b
    Example:
      fmnist-search dashboard --port 8080
    """
    from search.dashboard import serve

    serve(_url(storage, output), port, lambda address: click.echo(f"{address}  (Ctrl-C ends it)"))


@main.command()
@click.option("--epochs", type=int)
@click.option("--architecture", type=click.Choice(["simple", "cnn"]))
@click.option("--learning-rate", type=float)
@click.option("--batch-size", type=int)
@click.option("--dropout", type=float)
@click.option("--filters", type=int)
@click.option("--augmentation", type=float)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@score_on_option
@data_dir_option
@device_option
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    default="fmnist_cnn_full.pth",
    show_default=True,
    help="Checkpoint to write.",
)
def train(seed: int, score_on: str | None, data_dir: Path | None, device: str, save: Path, **given: Any) -> None:
    """Train one network and save it. What is not given is the default.

    \b
    Example:
      fmnist-search train --architecture simple --filters 8 --epochs 3
    """
    from fmnist import checkpoint, data
    from fmnist.evaluation import classification_report, evaluate
    from fmnist.training import Training

    loaded = data.load(data_dir)
    splits = data.split(loaded, "validation" if score_on == "validation" else "test")
    training = Training(_hyperparameters(given), seed, _device(device))
    for metrics in training.epochs(splits):
        click.echo(test_line(splits.score_on, metrics))
        checkpoint.save(save, training, splits.score_on, loaded)
    result = evaluate(training.scored_network, splits.scored.to(training.device))
    click.echo(f"\n{classification_report(result)}\nSaved {save}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, dir_okay=False))
@score_on_option
@data_dir_option
@json_option
def evaluate(checkpoint: Path, score_on: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Score a CHECKPOINT: accuracy, classification report, confusion matrix.

    \b
    Example:
      fmnist-search evaluate fmnist_cnn_full.pth
    """
    from fmnist import data, evaluation
    from fmnist.checkpoint import load

    network = load(checkpoint).network()
    splits = data.split(data.load(data_dir), "validation" if score_on == "validation" else "test")
    result = evaluation.evaluate(network, splits.scored)
    if as_json:
        click.echo(json.dumps(evaluation.as_json(result) | {"score_on": splits.score_on}))
    else:
        click.echo(f"{test_line(splits.score_on, result)}\n")
        click.echo(f"{evaluation.classification_report(result)}\n{evaluation.confusion_table(result)}")


@main.command()
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


def _url(storage: str | None, output: Path | None) -> str:
    from search.storage import default_url

    return storage or default_url(output or Path("studies"))


@contextmanager
def _study(name: str, storage: str | None, output: Path | None) -> "Iterator[tuple[optuna.Study, Path]]":
    """Open a study, and say where its files are: in --output, else where its last run put them."""
    from search.storage import open_storage, reported
    from search.study import folder_of, load_study

    url = _url(storage, output)
    with reported(url):
        study = load_study(open_storage(url), name)
        beside = output is not None or storage is None
        yield study, (output or Path("studies")) / name if beside else folder_of(study)


def _device(name: str) -> "torch.device":
    """The device of that name.

    Raises:
        click.UsageError: it is not on this machine.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        raise click.UsageError(f"--device {name}: there is none on this machine; use --device cpu")
    return torch.device(name)


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
