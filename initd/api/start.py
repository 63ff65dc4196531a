"""Bring the API up: on the socket that PID 1 has been listening on, and on the lines that the command line opens.

The Unix socket's mode lets everyone connect: who may do what is decided by initd.api.access, from what the kernel says
about the peer. Connections are bounded for each uid and in total, so that no user can use up the connections of another
or PID 1's file descriptors. At a bound one without a call under way gives way to a new one: of the same uid, or of no
higher role; first the lowest role, then who was silent for longest.
"""

import asyncio
import resource
import socket
from collections.abc import Callable
from functools import partial
from typing import cast

from initd import log
from initd.api import access, protocol, serial
from initd.api import methods as _methods  # noqa: F401 registers them
from initd.api.protocol import Code
from initd.api.registry import METHODS, Peer, Role
from initd.api.session import HIGH_WATER, Api, Session
from initd.node import Node

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_OF_ONE = 64
_BACKLOG = 128


async def serve(node: Node) -> None:
    """Answer from now on. A line that cannot be had is logged and tried again: the Unix socket alone will do."""
    api = Api(node, METHODS)
    if node.listener is not None:
        roles = node.config.api.roles if node.config is not None else ()
        await listen(api, socket.socket(fileno=node.listener), partial(access.identify, roles=roles))
    for name, begin in (("serial", _serial), ("vsock", _vsock)):
        word = node.command_line.get(f"initd.api.{name}")
        if word is None:
            continue
        if word.upper() in Role.__members__:
            node.spawn_task(partial(begin, api, Role[word.upper()]), f"API on {name}")
        else:
            log.error(f"initd.api.{name}: found {word!r}, expected reader, operator or admin")


async def listen(api: Api, listener: socket.socket, identify: Callable[[socket.socket], Peer]) -> asyncio.Server:
    """Serve everyone who connects to a socket that is bound. identify raises OSError if the peer is gone already."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Arrival(api, identify), sock=listener, backlog=_BACKLOG)


class _Arrival(asyncio.Protocol):
    """A connection until it is known who is there, and whether there is room for them."""

    def __init__(self, api: Api, identify: Callable[[socket.socket], Peer]) -> None:
        self._api, self._identify = api, identify

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        line = cast("asyncio.Transport", transport)
        line.set_write_buffer_limits(high=HIGH_WATER)
        try:
            peer = self._identify(line.get_extra_info("socket"))
        except OSError:
            line.abort()
            return
        session = Session(self._api, line, peer)
        owner = None if peer.role is Role.NONE else peer.uid  # all peers without a role share one allowance
        refused, others = _too_many(self._api.sessions, peer, owner)
        silent = min((s for s in others if not s.calls), key=lambda s: (s.peer.role, s.heard), default=None)
        if refused and silent is None:
            session.end(Code.RESOURCE_EXHAUSTED, f"{refused}: close one, or try again later")
            return
        if silent is not None:
            del self._api.sessions[silent]
            silent.end(Code.RESOURCE_EXHAUSTED, "another connection takes the place of this one, which was silent", 0.0)
        self._api.sessions[session] = owner
        line.set_protocol(session)


def _too_many(sessions: dict[Session, int | None], peer: Peer, owner: int | None) -> tuple[str, list[Session]]:
    """What is too much for one more, and the sessions of which one may give way to it."""
    own = [session for session, other in sessions.items() if other == owner]
    if len(own) >= MAX_CONNECTIONS_OF_ONE:
        who = "peers without a role have" if owner is None else f"uid {owner} has"
        return f"{who} {MAX_CONNECTIONS_OF_ONE} connections", own
    # Half of the descriptors are kept for what PID 1 has to do itself, whatever the API's clients do.
    bound = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    if len(sessions) >= bound:
        return f"the node has {bound} connections", [session for session in sessions if session.peer.role <= peer.role]
    return "", []


async def _serial(api: Api, role: Role) -> None:
    device = serial.find_port()
    if device is None:
        raise LookupError(f"no virtio-serial port {serial.PORT_NAME}")
    port = serial.Port(api, serial.open_port(device), role)
    try:
        raise await port.lost
    finally:
        port.shut()


async def _vsock(api: Api, role: Role) -> None:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind((socket.VMADDR_CID_ANY, protocol.VSOCK_PORT))
    await listen(api, listener, lambda connection: Peer(-1, -1, -1, role, f"vsock {connection.getpeername()}"))
