"""The API on a virtio-serial port: one byte stream without peers, served with the role that the command line gives.

The host may go away in the middle of a frame and come back, so both sides discard until a hello with a nonce
(initd.api.protocol). A hello starts a new session whatever was running: the host has forgotten the old one.

While nothing has the port open on the host, read(2) returns 0 and poll(2) says POLLHUP (drivers/char/virtio_console.c),
so a loop that watched it like a socket would spin. The port is watched through an epoll of its own, edge-triggered: it
wakes when the host opens the port, and costs nothing until then.
"""

import asyncio
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

from initd.api.protocol import HELLO_REQUEST, Marker
from initd.api.registry import Peer, Role
from initd.api.session import HIGH_WATER, READ_SIZE, Api, Session
from initd.files import read

PORT_NAME = "io.initd.api"
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR | select.EPOLLET
_Result = TypeVar("_Result")


def find_port(name: str = PORT_NAME, ports: str = "/sys/class/virtio-ports") -> str | None:
    """Return the device of the virtio-serial port that the host gave this name, or None. No udev has to be there."""
    entries = sorted(os.listdir(ports)) if os.path.isdir(ports) else ()
    return next((f"/dev/{entry}" for entry in entries if read(f"{ports}/{entry}/name") == name), None)


def open_port(device: str) -> int:
    """Open a port for Port. Raises OSError, with EBUSY if somebody has it open."""
    return os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


class Port:
    """Serves the API on a non-blocking descriptor, which it owns from then on."""

    def __init__(self, api: Api, fd: int, role: Role) -> None:
        self._api = api
        self._peer = Peer(-1, -1, -1, role, "serial port")
        self._fd = fd
        self._marker = Marker(HELLO_REQUEST)
        self._line: socket.socket | None = None  # the other end of a session's; None until a hello came
        self._sending: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._edge = asyncio.Event()
        self._edges = select.epoll()
        self._edges.register(fd, _EDGES)
        self._loop.add_reader(self._edges.fileno(), self._woken)

    async def serve(self) -> NoReturn:
        """Serve until the port cannot be read any more: raises OSError that says why."""
        try:
            while True:
                await self._receive(await self._at_edges(os.read, self._fd, READ_SIZE))
                await asyncio.sleep(0)  # a host that never stops talking lets others have their turn
        finally:
            await self._end()
            self._loop.remove_reader(self._edges.fileno())
            self._edges.close()
            os.close(self._fd)

    async def _receive(self, data: bytes) -> None:
        found = self._marker.feed(data)
        if found is not None or not data:
            await self._end()
        if not data:  # nobody is there
            await self._next_edge()
            return
        if found is not None:
            self._line, theirs = socket.socketpair()
            self._line.setblocking(False)
            transport, _ = await self._loop.connect_accepted_socket(asyncio.Protocol, theirs)
            transport.set_write_buffer_limits(high=HIGH_WATER)
            transport.set_protocol(Session(self._api, transport, self._peer))
            self._sending = self._loop.create_task(self._send(self._line))
        if self._line is not None:
            with suppress(OSError):  # the session has ended; only a hello helps
                await self._loop.sock_sendall(self._line, found or data)

    async def _send(self, line: socket.socket) -> None:
        """Send what a session says; what the port does not take waits, and in the end the session does."""
        with suppress(ConnectionError):  # the session was cut off
            while data := await self._loop.sock_recv(line, READ_SIZE):
                with suppress(OSError):  # nobody is there, as the next read finds too
                    while data:
                        data = data[await self._at_edges(os.write, self._fd, data) :]

    async def _end(self) -> None:
        """End the session, drop what it had to say, and wait for a hello."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        if self._line is not None:
            self._line.close()
        self._sending = self._line = None

    async def _at_edges(self, call: Callable[..., _Result], *arguments: object) -> _Result:
        """Call now, or else at one of the next edges; it finds out what they were."""
        while True:
            try:
                return call(*arguments)
            except BlockingIOError:
                await self._next_edge()

    async def _next_edge(self) -> None:
        self._edge.clear()
        await self._edge.wait()

    def _woken(self) -> None:
        self._edges.poll(0)  # takes note of the edge
        self._edge.set()
