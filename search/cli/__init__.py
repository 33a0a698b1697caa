"""The commands of fmnist-search. Each parses, calls one function, and prints.

Heavy modules are imported inside the commands, so that --help answers at once.
"""

import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import click

from fmnist.errors import ExpectedError
from search import logs
from search.cli import deployment, doctor, networks, results, serving, settings, sharing, studies


class ExpectedFailure(click.ClickException):
    """An error that the user can fix, without a traceback of ours: one line, or one for each mistake in a file."""

    def __init__(self, error: ExpectedError | OSError) -> None:
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {error.strerror}; name another place, or mend this one"
        elif isinstance(error, OSError):
            text = error.strerror or text
            if _output_is_lost():
                text = f"standard output cannot be written: {text}; send it somewhere else"
        # What follows a first line: mistakes in a study file, frames of the user's code, or what differs in it.
        first, *rest = text.splitlines() or [""]
        super().__init__("\n".join([" ".join(first.split()), *map(str.rstrip, rest)]))
        self.exit_code = getattr(error, "exit_code", 1)  # type: ignore[misc]  # click reads the instance's


def _output_is_lost() -> bool:
    """Whether standard output cannot be written. If so, what it still holds is thrown away."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # Python flushes at exit, and would report it too
        return True
    return False


@contextmanager
def _expected_failures() -> Iterator[None]:
    """Turn the errors that a user can fix into one line."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has enough of it; click ends without a word
    except (ExpectedError, OSError) as error:
        raise ExpectedFailure(error) from error


class Group(click.Group):
    """Commands in the order in which a user meets them."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        super().add_command(cmd, name)
        settings.name_variables(cmd)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        gc.set_threshold(100_000)  # objects; at the usual 700 it took a sixth of short commands, while they import
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a dash that the terminal cannot show is no reason to end
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _expected_failures():
            rest = super().parse_args(ctx, args)
        with suppress(click.UsageError) if ctx.resilient_parsing else nullcontext():  # a shell that completes
            ctx.default_map = settings.read(ctx, self.commands)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _expected_failures():
                return super().invoke(ctx)
        except click.BadParameter as error:
            settings.name_source(error)
            raise
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            raise SystemExit(130) from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fmnist-search")
def main() -> None:
    """Find good hyperparameters for a Fashion-MNIST network.

    \b
    Start here:
      fmnist-search doctor
      fmnist-search run --trials 50

    An option that is not given is taken from the environment (--data-dir of `run`: FMNIST_SEARCH_RUN_DATA_DIR,
    else FMNIST_SEARCH_DATA_DIR), then from fmnist-search.toml in the working directory (data-dir below [run],
    else at the top), then its default.
    """
    logs.configure("warning")  # the commands that have --log-level do it again


for command in (
    studies.run,
    studies.studies,
    studies.finalists,
    results.status,
    results.best,
    results.report,
    serving.dashboard,
    sharing.worker,
    sharing.enqueue,
    sharing.stop,
    sharing.reproduce,
    sharing.gc,
    sharing.delete,
    networks.train,
    networks.evaluate,
    deployment.predict,
    deployment.export,
    networks.data,
    doctor.doctor,
):
    main.add_command(command)
