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

from initd.api.protocol import HELLO_REQUEST, Marker
from initd.api.registry import Peer, Role
from initd.api.session import HIGH_WATER, READ_SIZE, Api, Session
from initd.files import read

PORT_NAME = "io.initd.api"
_READS_PER_TURN = 8
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR | select.EPOLLET


def find_port(name: str = PORT_NAME, ports: str = "/sys/class/virtio-ports") -> str | None:
    """Return the device of the virtio-serial port that the host gave this name, or None. No udev has to be there."""
    entries = sorted(os.listdir(ports)) if os.path.isdir(ports) else ()
    return next((f"/dev/{entry}" for entry in entries if read(f"{ports}/{entry}/name") == name), None)


def open_port(device: str) -> int:
    """Open a port for Port. Raises OSError, with EBUSY if somebody has it open."""
    return os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


class Port(asyncio.Transport):
    """Serves the API on a non-blocking descriptor, which it owns from then on; no method of it raises or blocks."""

    def __init__(self, api: Api, fd: int, role: Role) -> None:
        super().__init__()
        self._api = api
        self._peer = Peer(-1, -1, -1, role, "serial port")
        self._fd = fd
        self._marker = Marker(HELLO_REQUEST)
        self._session: Session | None = None  # None until a hello came
        self._output = bytearray()
        self._full = False
        self._held = False
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[OSError] = self._loop.create_future()  # why the port cannot be read any more
        self._edges = select.epoll()
        self._edges.register(fd, _EDGES)
        self._loop.add_reader(self._edges.fileno(), self._ready)

    def shut(self) -> None:
        """Stop serving and close the descriptor."""
        self.abort()
        self._loop.remove_reader(self._edges.fileno())
        self._edges.close()
        os.close(self._fd)
        self._fd = -1

    def is_closing(self) -> bool:
        return self._fd < 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data, keeping what the kernel does not take at once."""
        self._output += data
        self._flush()
        if len(self._output) > HIGH_WATER and not self._full and self._session:
            self._full = True
            self._session.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._output)

    def pause_reading(self) -> None:
        self._held = True

    def resume_reading(self) -> None:
        """Go on; the edge may have come meanwhile."""
        self._held = False
        self._loop.call_soon(self._ready)

    def close(self) -> None:
        """End the session and wait for a hello; what is kept still goes out, if the host takes it."""
        session, self._session = self._session, None
        self._full = self._held = False
        if session:
            session.connection_lost(None)

    def abort(self) -> None:
        """End the session, drop what is kept, and wait for a hello."""
        self._output.clear()
        self.close()

    def _ready(self) -> None:
        if self._fd < 0:
            return
        self._edges.poll(0)  # takes note of the edge; reads and writes below find out what it was
        self._flush()
        for _ in range(_READS_PER_TURN):
            if self._held:
                return
            data = self._read()
            if data is None:
                return
            self._receive(data)
        self._loop.call_soon(self._ready)  # others first; the edge will not come again

    def _read(self) -> bytes | None:
        """Return what came, or None until the next edge."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:  # unplugged, or a terminal's other side is closed
            data = b""
            if not self.lost.done():
                self.lost.set_result(error)
        if not data:
            self.abort()
            return None
        return data

    def _receive(self, data: bytes) -> None:
        found = self._marker.feed(data)
        if found is not None:
            self.abort()
            self._session = Session(self._api, self, self._peer)
            data = found
        if self._session:
            self._session.receive(data)

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: os.write(self._fd, self._output)]
        except BlockingIOError:
            pass  # the port is full: what is left goes out when it can be written again
        except OSError:  # nobody is there; the read that follows the edge ends the session
            self._output.clear()
        if self._full and len(self._output) <= HIGH_WATER // 4:
            self._full = False
            if self._session:
                self._session.resume_writing()
