"""The command that serves what others look at: dashboard."""

import os
import sys
from functools import partial
from pathlib import Path

import click

from search.choices import OUTPUT
from search.cli.options import UserPath, storage_options
from search.outputs import UPLOADS

PASSWORD = "FMNIST_SEARCH_PASSWORD"  # noqa: S105  # the variable's name


@click.command(short_help="Serve optuna-dashboard for the studies.")
@storage_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port to listen on.")
@click.option("--auth", metavar="USER", help=f"Let in only USER, with a password: a file's, {PASSWORD}, or asked for.")
@click.option(
    "--password-file",
    type=UserPath(exists=True, dir_okay=False),
    help="File whose first line is the password of --auth.",
)
@click.option("--insecure", is_flag=True, help="Let other machines in without --auth.")
@click.option("--read-only", is_flag=True, help="Refuse every change: delete, rename, tell, upload, notes.")
@click.option("--prefix", metavar="PATH", help="Serve it below a path of a site, such as /tuning.")
@click.option("--behind-proxy", is_flag=True, help="A proxy serves it: believe what that says of who asks.")
def dashboard(
    storage: str | None,
    output: Path | None,
    host: str,
    port: int,
    auth: str | None,
    password_file: Path | None,
    insecure: bool,
    read_only: bool,
    prefix: str | None,
    behind_proxy: bool,
) -> None:
    """Serve optuna-dashboard for the database and the artifacts of its studies.

    It is for this machine only, unless --host says otherwise; then users must sign in. HTTP is
    not encrypted: across a network put a proxy with TLS before it, or an SSH tunnel.

    \b
    Examples:
      fmnist-search dashboard --port 8080
      fmnist-search dashboard --host 0.0.0.0 --auth me --read-only
      fmnist-search dashboard --prefix /tuning --behind-proxy --auth me
    """
    from search.dashboard.middleware import Credentials
    from search.dashboard.prefix import check_prefix
    from search.dashboard.server import DashboardSettings, serve
    from search.database.url import file_of, url_of
    from search.study.places import folder_of

    if password_file and auth is None:
        raise click.UsageError("--password-file is the password of a user: name that user with --auth")
    url = url_of(storage, output)
    file = file_of(url)
    settings = DashboardSettings(
        storage=url,
        folder=partial(folder_of, output=output),
        uploads=(output or (file.parent if file else OUTPUT)) / UPLOADS,
        host=host,
        port=port,
        credentials=None if auth is None else Credentials(auth, _password(auth, password_file)),
        insecure=insecure,
        read_only=read_only,
        prefix=check_prefix(prefix) if prefix else "",
        behind_proxy=behind_proxy,
    )
    serve(settings, lambda address: click.echo(f"{address}  (Ctrl-C ends it)"))


def _password(user: str, file: Path | None) -> str:
    """The password from a file, else from the environment, else from a prompt.

    Raises:
        click.UsageError: there is none.
    """
    if file:
        password = next(iter(file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()), "")
        if not password:
            raise click.UsageError(f"--password-file {file}: its first line is empty; write the password there")
        return password
    if password := os.environ.pop(PASSWORD, ""):
        return password
    if not sys.stdin.isatty():
        raise click.UsageError(f"--auth {user} needs a password: name a file with --password-file, or set {PASSWORD}")
    return str(click.prompt(f"Password for {user}", hide_input=True, err=True))
