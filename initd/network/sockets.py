"""The sockets of one link's DHCP client."""

import asyncio
import socket
from collections.abc import Callable

from initd import bpf
from initd.bpf import Op
from initd.network.dhcp import Send
from initd.network.packet import BROADCAST, CLIENT_PORT, SERVER_PORT, RefusedError, unwrap, wrap

ETH_P_IP = 0x0800
_MAX_PACKET = 4096
# IPv4, UDP, no fragment, to port 68. A packet socket without it would wake the worker for every packet of every pod.
_DHCP_ONLY = bpf.assemble(
    Op(bpf.LOAD_BYTE, 9),
    Op(bpf.EQUAL, socket.IPPROTO_UDP, false="drop"),
    Op(bpf.LOAD_HALF, 6),
    Op(bpf.ANY_BIT, 0x3FFF, true="drop"),
    Op(bpf.LOAD_IP_HEADER, 0),
    Op(bpf.LOAD_HALF_AT, 2),
    Op(bpf.EQUAL, CLIENT_PORT, false="drop"),
    Op(bpf.RETURN, 0xFFFF),
    "drop",
    Op(bpf.RETURN, 0),
)
_NOTHING = bpf.assemble(Op(bpf.RETURN, 0))


class Transport:
    """Sends a client's messages over a link and hands it the payloads that come back while it listens."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, receive: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._name = name
        self._receive = receive
        self._packets: socket.socket | None = None  # hears answers to an address that the link does not have yet
        self._datagrams: socket.socket | None = None  # for renewals: the kernel routes and resolves

    def close(self) -> None:
        """Stop listening; sockets cost nothing while the lease is good."""
        if self._packets:
            self._loop.remove_reader(self._packets)
            self._packets.close()
        if self._datagrams:
            self._datagrams.close()
        self._packets = self._datagrams = None

    def send(self, message: Send) -> None:
        """Put a message on the wire. Raises OSError, which is like a lost packet: the client tries again."""
        if self._packets is None:
            self._packets = self._open(socket.AF_PACKET, _DHCP_ONLY, (self._name, ETH_P_IP))
            self._loop.add_reader(self._packets, self._read, self._packets)
        if message.destination == BROADCAST:
            datagram = wrap(message.payload, message.source, BROADCAST)
            self._packets.sendto(datagram, (self._name, ETH_P_IP, 0, 0, b"\xff" * 6))
            return
        if self._datagrams is None:
            # It stays open while an answer may come, so that the kernel does not tell the server that the port is
            # closed; the answer itself is read from the packet socket.
            self._datagrams = self._open(socket.AF_INET, _NOTHING, (message.source, CLIENT_PORT))
        self._datagrams.sendto(message.payload, (message.destination, SERVER_PORT))

    def _open(self, family: int, program: bytes, address: tuple[str, int]) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            bpf.attach(sock, program)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._name.encode())
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        return sock

    def _read(self, sock: socket.socket) -> None:
        try:
            payload = unwrap(sock.recv(_MAX_PACKET))
        except (OSError, RefusedError):
            return  # the link went away or down, as netlink tells; or no DHCP answer: nothing to tell the client
        self._receive(payload)
