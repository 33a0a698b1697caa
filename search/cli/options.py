"""Options that several commands share."""

import math
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource

from fmnist.files import expand
from search.choices import ENGINES, GRACE
from search.cli import completion
from search.logs import LEVELS

if TYPE_CHECKING:
    import optuna

    from search.database.url import Location

STUDY = "cnn"  # the study that commands mean if none is named
STORAGE_FILE = "FMNIST_SEARCH_STORAGE_FILE"

Command = TypeVar("Command", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A range of finite floats; click's accepts NaN in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class UserPath(click.Path):
    """A path in which ~ is expanded: shells do not expand it in --option=~/x."""

    def __init__(self, **limits: bool) -> None:
        super().__init__(path_type=Path, **limits)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand(value), param, ctx)


def data_dir_option(command: Command) -> Command:
    """Add --data-dir to a command."""
    return click.option(
        "--data-dir",
        type=UserPath(file_okay=False),
        help="Folder of the four Fashion-MNIST files.  "
        "[default: FMNIST_DATA, else the user's cache, Debian's package, or a download]",
    )(command)


def _storage_from_file(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The value of --storage, else the first line of the file named by STORAGE_FILE, a container's secret."""
    source = context.get_parameter_source(str(parameter.name))
    return value if context.resilient_parsing else _or_secret(value, source)


def _or_secret(value: str | None, source: ParameterSource | None) -> str | None:
    file = os.environ.get(STORAGE_FILE)
    if not file or source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        return value
    try:
        lines = expand(file).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise click.UsageError(f"{STORAGE_FILE}: {file} cannot be read ({error.strerror}); name a file") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{STORAGE_FILE}: {file} is not a text file; name another file") from error
    if not lines or not lines[0].strip():
        raise click.UsageError(f"{STORAGE_FILE}: the first line of {file} is empty; write the URL there")
    return lines[0].strip()


def usual_location() -> "Location | None":
    """Where commands look for studies by the environment and the settings file; None if commands differ in that."""
    from search.database.url import Location

    root = click.get_current_context().find_root()
    assert isinstance(root.command, click.Group)
    found = set()
    for name, command in root.command.commands.items():
        own = command.make_context(name, [], parent=root, resilient_parsing=True)
        if "storage" in own.params:
            try:
                storage = _or_secret(own.params["storage"], own.get_parameter_source("storage"))
            except click.UsageError:  # the secret cannot be read: a command needs --storage
                return None
            found.add(Location(storage, own.params["output"]))
    return found.pop() if len(found) == 1 else None


def location_options(url: str, folder: Path) -> str:
    """The options with which a printed command finds a study here; folder: of the study's files."""
    from search.database.url import options_for

    return options_for(url, folder.parent, usual_location())


def finalists_command(study: str, url: str, folder: Path) -> str:
    """The command that trains a study's finalists; folder: of the study's files."""
    from search.database.url import command

    context, repeated = click.get_current_context(), ""
    for name in ("data_dir", "network_dir"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.meta.get(name) or context.params[name]
            repeated += f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
    return command("finalists", study, options=location_options(url, folder) + repeated)


def storage_options(command: Command) -> Command:
    """Add --storage and --output to a command."""
    command = click.option(
        "--storage",
        callback=_storage_from_file,
        help="Database: sqlite:///FILE or postgresql://USER@HOST/DB.  [default: studies.db in the output folder]",
    )(command)
    return click.option(
        "--output",
        type=UserPath(file_okay=False),
        help="Output folder, with a subfolder for each study.  [default: ./studies]",
    )(command)


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Device to train on; auto uses an accelerator if there is one.",
)


workers_option = click.option(
    "--workers", type=click.IntRange(1, 256), help="Worker processes.  [default: one per GPU, else one per core]"
)


def log_options(default: str) -> Callable[[Command], Command]:
    """Add --log-level, with its default, and --log-file to a command."""

    def decorated(command: Command) -> Command:
        command = click.option(
            "--log-file",
            type=UserPath(dir_okay=False),
            help="File to append log lines to.  [default: standard error]",
        )(command)
        return click.option(
            "--log-level",
            type=click.Choice(LEVELS),
            default=default,
            show_default=True,
            help="info: each step of each trial; warning: failures and waiting.",
        )(command)

    return decorated


def worker_options(command: Command) -> Command:
    """Add the options of every command that trains trials: workers, data, device, grace period, mixed versions."""
    for option in reversed(
        [
            workers_option,
            data_dir_option,
            device_option,
            click.option(
                "--grace",
                type=FiniteRange(1, 86400),
                default=GRACE,
                show_default=True,
                help="Seconds without progress after which other workers take over these workers' trials.",
            ),
            click.option(
                "--allow-mixed",
                is_flag=True,
                help="Work on a study started with other data or other versions of fmnist-search or torch.",
            ),
        ]
    ):
        command = option(command)
    return command


def cluster_options(command: Command) -> Command:
    """Add --engine and --address to a command."""
    command = click.option(
        "--address", default="auto", show_default=True, help="Ray cluster to use: HOST:PORT of its head node."
    )(command)
    return click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="local",
        show_default=True,
        help="Run workers on this machine (local) or on a Ray cluster (ray), which needs --workers.",
    )(command)


def check_engine(engine: str, workers: int | None) -> None:
    """Raise click.UsageError if the number of workers on a cluster is missing."""
    if engine == "ray" and workers is None:
        raise click.UsageError("--engine ray needs --workers: the number of workers that the cluster may grow to")


def score_on_option(default: str) -> Callable[[Command], Command]:
    """The option --score-on; `default` describes its default in the help."""
    return click.option(
        "--score-on",
        type=click.Choice(["test", "validation"]),
        help=f"Images to score on: the test set, or a sixth of the training set.  [default: {default}]",
    )


def _set_network_dir(context: click.Context, parameter: click.Parameter, folder: Path | None) -> None:
    if context.resilient_parsing:
        return  # `meta` belongs to the invoked command
    context.meta[str(parameter.name)] = folder
    if folder is not None:
        from fmnist import own_network

        context.with_resource(own_network.found_in(folder))


def _trust(context: click.Context, parameter: click.Parameter, architecture: str | None) -> None:
    # Only from the command line: an `architecture` in the environment or the settings file is meant for `train`.
    given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    if architecture is not None and given and not context.resilient_parsing:
        from fmnist import own_network

        own_network.trust(architecture)


def network_dir_option(default: str) -> Callable[[Command], Command]:
    """The option --network-dir; `default` describes its default in the help."""
    return click.option(
        "--network-dir",
        type=UserPath(file_okay=False, exists=True),
        callback=_set_network_dir,
        expose_value=False,
        is_eager=True,  # before --architecture, which loads the network
        help=f"Folder with the file of your own network.  [default: {default}]",
    )


def own_network_options(command: Command) -> Command:
    """The options that locate the code of a recorded network and allow importing it."""
    command = click.option(
        "--architecture",
        callback=_trust,
        expose_value=False,
        metavar="MODULE:CLASS",
        help="Your own network, if it is an importable module or a factory function: its code runs only if named here.",
    )(command)
    return network_dir_option("working directory")(command)


force_option = click.option("--force", is_flag=True, help="Overwrite a file not written by fmnist-search.")


def json_option(command: Command) -> Command:
    """Add --json to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


artifacts_option = click.option(
    "--artifacts",
    help="Checkpoint storage: a folder or s3://BUCKET/PREFIX, with a subfolder for each study.  "
    "[default: the study's folder]",
)
deleting_from_option = click.option(
    "--artifacts", help="The --artifacts of `run`, to allow deletion there: a folder or s3://BUCKET/PREFIX."
)
study_argument = click.argument(
    "study",
    default=STUDY,
    shell_complete=completion.stored,
    help=f"Name of a study in the database.  [default: {STUDY}]",
)
new_study_argument = click.argument(
    "study",
    default=STUDY,
    shell_complete=completion.startable,
    help=f"Name of an included study, or a .toml file.  [default: {STUDY}]",
)
studies_argument = click.argument(
    "studies",
    nargs=-1,
    metavar="[STUDY]...",
    shell_complete=completion.stored,
    help=f"Names of studies in the database.  [default: {STUDY}]",
)


@contextmanager
def opened_study(
    name: str, storage: str | None, output: Path | None, mode: Literal["read", "write"] = "read"
) -> "Iterator[tuple[optuna.Study, Path]]":
    """Open a study; yield it with the folder of its files."""
    from search.database.connection import opened
    from search.database.retry import reported
    from search.database.url import url_of
    from search.study.places import folder_of
    from search.study.store import load_study

    url = url_of(storage, output)
    with opened(url, mode) as database, reported(url):
        study = load_study(database, name)
        yield study, folder_of(study, output)
