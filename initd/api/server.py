"""The API on a listening stream socket: the node's Unix socket, and vsock.

The socket's mode lets everyone connect: who may do what is decided by initd.api.access, from what the kernel says about
the peer. Connections are bounded for each uid and in total, so that no user can use up the connections of another or
PID 1's file descriptors.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from typing import TYPE_CHECKING, cast

from initd.api.protocol import ApiError, Code, Response, encode
from initd.api.registry import Peer, Role
from initd.api.session import HIGH_WATER, WRITE_DEADLINE, Api, Session

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_OF_ONE = 64
_BACKLOG = 128
_READ_SIZE = 8192  # what one peer may give the loop to do in one turn: a few hundred calls at most


class Server:
    """Serves the API to everyone who connects to one listening socket.

    identify says who a connected socket's peer is, or raises OSError: initd.api.access.identify on a Unix socket, on
    vsock a function that gives the role of the kernel command line.
    """

    def __init__(self, api: Api, identify: Callable[[socket.socket], Peer]) -> None:
        self.api = api
        self.identify = identify
        self.buffer = memoryview(bytearray(_READ_SIZE))  # every connection's: each is done before the next one reads
        self._connections: dict[Connection, int | None] = {}
        self._by_owner: Counter[int | None] = Counter()
        # Half of the descriptors are kept for what PID 1 has to do itself, whatever the API's clients do.
        self._max_connections = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections on a socket that is bound, until close()."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=listener, backlog=_BACKLOG)

    def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def admit(self, connection: Connection, peer: Peer) -> str:
        """Count a connection in; return why it cannot be, if it cannot."""
        owner = None if peer.role is Role.NONE else peer.uid  # all peers without a role share one allowance
        if len(self._connections) >= self._max_connections:
            return f"the node has {self._max_connections} connections"
        if self._by_owner[owner] >= MAX_CONNECTIONS_OF_ONE:
            who = "peers without a role have" if owner is None else f"uid {owner} has"
            return f"{who} {MAX_CONNECTIONS_OF_ONE} connections"
        self._connections[connection] = owner
        self._by_owner[owner] += 1
        return ""

    def forget(self, connection: Connection) -> None:
        """Count a connection out."""
        if connection in self._connections:
            self._by_owner[self._connections.pop(connection)] -= 1


class Connection(asyncio.BufferedProtocol):
    """One connection: a Line for its session."""

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._session: Session | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out who connected, and whether there is room for them."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        try:
            peer = self._server.identify(transport.get_extra_info("socket"))
        except OSError:  # it has gone already
            self._transport.abort()
            return
        refused = self._server.admit(self, peer)
        if refused:
            error = ApiError(Code.RESOURCE_EXHAUSTED, f"{refused}: close one, or try again later")
            self.write(encode(Response(0, error.to_wire(), None)))
            self.close()
        else:
            self._session = Session(self._server.api, self, peer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it is gone changes nothing
        """End what the peer had running."""
        self._server.forget(self)
        if self._session:
            self._session.close()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the size is ours to choose
        """Lend the buffer that the transport reads into."""
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what was read."""
        if self._session:
            self._session.receive(self._server.buffer[:nbytes])

    def pause_writing(self) -> None:
        """Pass on that the peer reads too slowly."""
        if self._session:
            self._session.pause()

    def resume_writing(self) -> None:
        """Pass on that it has caught up."""
        if self._session:
            self._session.resume()

    def write(self, data: bytes) -> None:
        """Send data."""
        if not self._transport.is_closing():  # else asyncio warns, once for each item of a stream
            self._transport.write(data)

    def pending(self) -> int:
        """Return how many bytes wait for the peer."""
        return self._transport.get_write_buffer_size()

    def hold(self, held: bool) -> None:
        """Stop reading, or go on."""
        if self._transport.is_closing():
            return
        if held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close once everything is written, or by force when the peer does not take it."""
        self._transport.close()
        asyncio.get_running_loop().call_later(WRITE_DEADLINE, self._transport.abort)

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()
