"""What several commands share: options, and what they mean."""

import math
import os
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

STORAGE_FILE = "FMNIST_SEARCH_STORAGE_FILE"

Command = TypeVar("Command", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A range of floats, and so neither infinite nor NaN, which is in every range of click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number.", param, ctx)
        return number


class UserPath(click.Path):
    """A path in which ~ is the user's home: a shell leaves it as it is in --option=~/x, and nothing else expands it."""

    def __init__(self, **limits: bool) -> None:
        super().__init__(path_type=Path, **limits)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand(value), param, ctx)


def data_dir_option(command: Command) -> Command:
    """Where the data set is looked for."""
    return click.option(
        "--data-dir",
        type=UserPath(file_okay=False),
        help="Folder of the four Fashion-MNIST files.  "
        "[default: FMNIST_DATA, else user cache, Debian's package, or download]",
    )(command)


def _or_from_file(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The value of --storage, else the first line of the file that the environment names: a secret, in containers."""
    given = context.get_parameter_source(str(parameter.name)) in (
        ParameterSource.COMMANDLINE,
        ParameterSource.ENVIRONMENT,
    )
    file = os.environ.get(STORAGE_FILE)
    if given or not file or context.resilient_parsing:
        return value
    try:
        lines = expand(file).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise click.UsageError(f"{STORAGE_FILE}: {file} cannot be read ({error.strerror}); name a file") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{STORAGE_FILE}: {file} is no text; name another file") from error
    if not lines or not lines[0].strip():
        raise click.UsageError(f"{STORAGE_FILE}: the first line of {file} is empty; write the URL there")
    return lines[0].strip()


def storage_options(command: Command) -> Command:
    """Where studies are: their database and their files."""
    command = click.option(
        "--storage",
        callback=_or_from_file,
        help="Database: sqlite:///FILE or postgresql://USER@HOST/DB.  [default: studies.db in the output folder]",
    )(command)
    return click.option(
        "--output",
        type=UserPath(file_okay=False),
        help="Folder of outputs; each study has a folder of its name there.  [default: ./studies]",
    )(command)


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to train; auto takes an accelerator if there is one.",
)


workers_option = click.option(
    "--workers", type=click.IntRange(1, 256), help="Worker processes.  [default: one a GPU, else one a core]"
)


def log_options(default: str) -> Callable[[Command], Command]:
    """How much is logged, and where to."""

    def decorated(command: Command) -> Command:
        command = click.option(
            "--log-file",
            type=UserPath(dir_okay=False),
            help="File to which log lines are appended.  [default: standard error]",
        )(command)
        return click.option(
            "--log-level",
            type=click.Choice(LEVELS),
            default=default,
            show_default=True,
            help="What is logged: info is each step of each trial, warning what went wrong or is waited for.",
        )(command)

    return decorated


def worker_options(command: Command) -> Command:
    """How workers run on this machine."""
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
                help="Seconds without progress after which other workers take over a trial of these.",
            ),
            click.option(
                "--allow-mixed",
                is_flag=True,
                help="Work on a study that was started with other data or versions of fmnist-search or torch.",
            ),
        ]
    ):
        command = option(command)
    return command


def cluster_options(command: Command) -> Command:
    """Whether workers run on this machine."""
    command = click.option(
        "--address", default="auto", show_default=True, help="Ray cluster to use, as HOST:PORT of its head."
    )(command)
    return click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="local",
        show_default=True,
        help="Where workers run: on this machine, or on a Ray cluster, which needs --workers.",
    )(command)


def check_engine(engine: str, workers: int | None) -> None:
    """Refuse a cluster without a number of workers."""
    if engine == "ray" and workers is None:
        raise click.UsageError("--engine ray needs --workers: a cluster may grow to the number that is asked for")


def score_on_option(default: str) -> Callable[[Command], Command]:
    """Which images score; `default` says in words which do if the option is not given."""
    return click.option(
        "--score-on",
        type=click.Choice(["test", "validation"]),
        help=f"Images that score: the test set, or a sixth of the training set.  [default: {default}]",
    )


def _look_in(context: click.Context, parameter: click.Parameter, folder: Path | None) -> None:
    """Let networks of the user's own be looked for in a folder."""
    context.meta[str(parameter.name)] = folder
    if folder is not None and not context.resilient_parsing:
        from fmnist import own_network

        context.with_resource(own_network.found_in(folder))


def _trust(context: click.Context, parameter: click.Parameter, architecture: str | None) -> None:
    """Let a record name what the user names here; a setting of that name is meant for `train`."""
    given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    if architecture is not None and given and not context.resilient_parsing:
        from fmnist import own_network

        own_network.trust(architecture)


def network_dir_option(default: str) -> Callable[[Command], Command]:
    """Where the file of a user's own network is."""
    return click.option(
        "--network-dir",
        type=UserPath(file_okay=False, exists=True),
        callback=_look_in,
        expose_value=False,
        is_eager=True,  # before a network is looked for
        help=f"Folder of the file of your own network.  [default: {default}]",
    )


def own_network_options(command: Command) -> Command:
    """Where the code of a network on record is, and whether it may be imported."""
    command = click.option(
        "--architecture",
        callback=_trust,
        expose_value=False,
        metavar="MODULE:CLASS",
        help="Your own network, if it is importable or made by a function: run only if you name it, too.",
    )(command)
    return network_dir_option("working directory")(command)


force_option = click.option("--force", is_flag=True, help="Overwrite a file that fmnist-search did not write.")


def json_option(command: Command) -> Command:
    """Whether the answer is printed as JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


artifacts_option = click.option(
    "--artifacts",
    help="Where checkpoints go, each study's in a place of its name: a folder, or s3://BUCKET/PREFIX.  "
    "[default: in the study's folder]",
)
deleting_from_option = click.option(
    "--artifacts", help="The --artifacts of `run`, to delete below it: a folder, or s3://BUCKET/PREFIX."
)
study_argument = click.argument("study", default="cnn", shell_complete=completion.stored)
new_study_argument = click.argument("study", default="cnn", shell_complete=completion.startable)


@contextmanager
def opened_study(
    name: str, storage: str | None, output: Path | None, mode: Literal["read", "write"] = "read"
) -> "Iterator[tuple[optuna.Study, Path]]":
    """Open a study, and say where its files are."""
    from search.database.connection import opened
    from search.database.retry import reported
    from search.database.url import url_of
    from search.study.places import folder_of
    from search.study.store import load_study

    url = url_of(storage, output)
    with opened(url, mode) as database, reported(url):
        study = load_study(database, name)
        yield study, folder_of(study, output)
