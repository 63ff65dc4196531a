"""The API's round trip on this machine: the real server on a Unix socket in one process, the client in another."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from initd.api.methods import node as _node_methods  # noqa: F401 registers the methods that are called
from initd.api.registry import METHODS, Peer, Role
from initd.api.session import Api
from initd.api.start import listen as serve_on
from initd.client.connection import Client
from initd.node import Node
from tests.unit.api_support import listen

if TYPE_CHECKING:
    import socket
    from pathlib import Path

CALLS = 2000
_WARM_UP = 200


def round_trips(folder: Path) -> list[float]:
    """Return how many milliseconds each of CALLS calls of `version` took, one after the other on one connection."""
    path = str(folder / "api.sock")
    listener = listen(path)
    server = os.fork()
    if server == 0:
        _serve(listener)
    try:
        listener.close()
        with Client(path) as client:
            return [_timed(client) for _ in range(_WARM_UP + CALLS)][_WARM_UP:]
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def _timed(client: Client) -> float:
    begun = time.perf_counter()
    client.call("version")
    return (time.perf_counter() - begun) * 1000


def _serve(listener: socket.socket) -> NoReturn:
    async def serve() -> None:
        await serve_on(Api(Node(), METHODS), listener, lambda _peer: Peer(0, 0, 0, Role.READER, "bench"))
        await asyncio.Event().wait()

    try:
        asyncio.run(serve())
    finally:
        os._exit(1)  # only the parent ends this process: nothing of what it forked may run twice
