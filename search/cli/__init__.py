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
    """An error that the user can fix, shown without a traceback: one line, or one line per mistake in a file."""

    def __init__(self, error: ExpectedError | OSError) -> None:
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {error.strerror}; name another place, or fix this one"
        elif isinstance(error, OSError):
            text = error.strerror or text
            if _discard_lost_output():
                text = f"cannot write to standard output: {text}; redirect it elsewhere"
        # Further lines are mistakes in a study file, or stack frames of or differences in the user's code.
        first, *rest = text.splitlines() or [""]
        super().__init__("\n".join([" ".join(first.split()), *map(str.rstrip, rest)]))
        self.exit_code = getattr(error, "exit_code", 1)  # type: ignore[misc]  # click reads the instance's


def _discard_lost_output() -> bool:
    """Whether standard output cannot be written; if so, discard what is buffered."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes again at exit and would report the error a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


@contextmanager
def _expected_failures() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader closed the pipe, as `head` does: click exits silently
    except (ExpectedError, OSError) as error:
        raise ExpectedFailure(error) from error


class Group(click.Group):
    """A command group that keeps the order in which commands were added, and reads the settings file."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        super().add_command(cmd, name)
        settings.name_variables(cmd)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        gc.set_threshold(100_000)  # objects; at the default of 700, collections during imports took 1/6 of the time
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # do not fail on a dash that the terminal's encoding lacks
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _expected_failures():
            rest = super().parse_args(ctx, args)
        with suppress(click.UsageError) if ctx.resilient_parsing else nullcontext():  # shell completion shows no errors
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

    Options that are not on the command line come from the environment (--data-dir of `run`:
    FMNIST_SEARCH_RUN_DATA_DIR, else FMNIST_SEARCH_DATA_DIR), then from fmnist-search.toml in the working directory
    (data-dir below [run], else at the top), then from their defaults.
    """
    logs.configure("warning")  # commands with --log-level configure it again


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
