"""Connections: how many one client may have, and how long a request may take to arrive.

waitress alone takes a hundred connections from whoever comes first, and keeps each for as long as a byte comes now and
then. Nobody has signed in by then.
"""

import socket
from typing import Any
from wsgiref.types import WSGIApplication

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer

from search.dashboard.middleware import client_of

MOST, MOST_OF_CLIENT = 1000, 32  # connections; a browser has six
PATIENCE = 10  # seconds that a connection may be idle, and that the headers of a request may take


class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection on which data counts as activity only once the headers of a request are complete."""

    def handle_read(self) -> None:
        before = self.last_activity  # type: ignore[has-type]
        super().handle_read()
        if not self.requests and (self.request is None or not self.request.headers_finished):
            self.last_activity = before


class BoundedServer(TcpWSGIServer):  # type: ignore[misc]
    """waitress with a bound on the connections of one client: a new one takes the place of its oldest idle one.

    Args:
        listener: bound to an address.
        threads: that answer requests.
        largest: bytes of a request.
        prefix: of the paths that it is asked for.
        behind_proxy: who asks, and by what scheme, is what a proxy says; it is the one client, and bounds its own.
    """

    channel_class = Channel

    def __init__(
        self,
        application: WSGIApplication,
        listener: socket.socket,
        *,
        threads: int,
        largest: int,
        prefix: str = "",
        behind_proxy: bool = False,
    ) -> None:
        self.behind_proxy = behind_proxy
        settings = Adjustments(
            url_prefix=prefix,
            trusted_proxy="*" if behind_proxy else None,
            trusted_proxy_headers={"x-forwarded-for", "x-forwarded-proto"} if behind_proxy else set(),
            clear_untrusted_proxy_headers=True,
            sockets=[listener],
            threads=threads,
            ident=None,
            max_request_body_size=largest,
            connection_limit=MOST,
            channel_timeout=PATIENCE,
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() knows no descriptor above 1023
        )
        where = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(application, _sock=listener, adj=settings, bind_socket=False, sockinfo=where)

    def accept(self) -> tuple[socket.socket, Any] | None:
        accepted: tuple[socket.socket, Any] | None = super().accept()
        if accepted is None:
            return None
        connection, address = accepted
        client = client_of(address[0])
        of_client = [each for each in self.active_channels.values() if client_of(each.addr[0]) == client]
        if not self.behind_proxy and len(of_client) >= MOST_OF_CLIENT:
            idle = [each for each in of_client if not each.requests and not each.total_outbufs_len]
            if not idle:
                connection.close()
                return None
            min(idle, key=lambda each: each.last_activity).handle_close()
        return accepted
