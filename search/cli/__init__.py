"""The commands of fmnist-search. Each parses, calls one function, and prints.

Heavy modules are imported inside the commands, so that --help answers at once.
"""

from typing import Any

import click

from fmnist.errors import ExpectedError
from search.cli import deployment, networks, results, serving, sharing, studies


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
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            raise SystemExit(130) from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fmnist-search")
def main() -> None:
    """Find good hyperparameters for a Fashion-MNIST network.

    \b
    Start here:
      fmnist-search run --trials 50
    """


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
):
    main.add_command(command)
