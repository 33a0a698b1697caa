"""optuna-dashboard over the studies' database, served to this machine only."""

import socket
from collections.abc import Callable
from contextlib import suppress

from fmnist.errors import ExpectedError
from search.storage import open_storage

HOST = "127.0.0.1"


class DashboardError(ExpectedError):
    """The dashboard cannot be served; the message says what to do."""


def serve(url: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        ready: called with the page's address once the port is open.

    Raises:
        DashboardError: the port is in use.
        StorageError: the database cannot be opened.
    """
    import waitress
    from optuna_dashboard import wsgi

    application = wsgi(open_storage(url, "write"))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise DashboardError(f"port {port} cannot be opened ({error.strerror}); choose another with --port") from error
    server = waitress.create_server(application, sockets=[listener], threads=4)
    with suppress(KeyboardInterrupt):  # which the server knows to end by, once it runs
        ready(f"http://{HOST}:{port}/")
        server.run()
