"""Limits on connections per client, and on the time in which a request must arrive.

waitress alone accepts a hundred connections in total and keeps each open as long as a byte arrives now and then, so
that one client without a sign-in could block all others.
"""

import socket
from typing import Any
from wsgiref.types import WSGIApplication

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer

from search.dashboard.middleware import client_of

MOST, MOST_OF_CLIENT = 1000, 32  # connections in total and per client; a browser opens six
PATIENCE = 10  # seconds for which a connection may be idle, and within which a request's headers must arrive


class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection on which incomplete request headers do not count as activity."""

    def handle_read(self) -> None:
        before = self.last_activity  # type: ignore[has-type]
        super().handle_read()
        if not self.requests and (self.request is None or not self.request.headers_finished):
            self.last_activity = before


class BoundedServer(TcpWSGIServer):  # type: ignore[misc]
    """waitress with a limit on the connections of one client: a new one replaces its longest idle one.

    Args:
        listener: socket bound to an address.
        threads: number of threads that answer requests.
        largest: limit of a request's size in bytes.
        prefix: of URL paths.
        behind_proxy: take client address and scheme from the proxy's headers, and do not limit its connections.
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
            asyncore_use_poll=True,  # select() does not support descriptors above 1023
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
