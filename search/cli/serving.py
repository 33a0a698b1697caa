"""The command that serves the dashboard."""

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
@click.option(
    "--auth", metavar="USER", help=f"Require a sign-in as USER; password: --password-file, {PASSWORD}, or prompt."
)
@click.option(
    "--password-file",
    type=UserPath(exists=True, dir_okay=False),
    help="File whose first line is the password for --auth.",
)
@click.option("--insecure", is_flag=True, help="Allow other machines without --auth.")
@click.option("--read-only", is_flag=True, help="Refuse every change: delete, rename, tell, upload, notes.")
@click.option("--prefix", metavar="PATH", help="Serve below this URL path, such as /tuning.")
@click.option("--behind-proxy", is_flag=True, help="Trust a reverse proxy's X-Forwarded-For and X-Forwarded-Proto.")
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

    Only this machine can reach it, unless --host names another address, which requires --auth. HTTP is not
    encrypted: across a network use a proxy with TLS or an SSH tunnel.

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
        raise click.UsageError("--password-file needs a user; name one with --auth")
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
    serve(settings, lambda address: click.echo(f"{address}  (Ctrl-C to stop)"))


def _password(user: str, file: Path | None) -> str:
    if file:
        password = next(iter(file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()), "")
        if not password:
            raise click.UsageError(f"--password-file {file}: the first line is empty; write the password there")
        return password
    if password := os.environ.pop(PASSWORD, ""):
        return password
    if not sys.stdin.isatty():
        raise click.UsageError(f"--auth {user} needs a password: name a file with --password-file, or set {PASSWORD}")
    return str(click.prompt(f"Password for {user}", hide_input=True, err=True))
