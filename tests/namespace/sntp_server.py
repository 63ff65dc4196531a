"""A time server that says what it is told to: `good`, `silent`, `lying` (it answers what nobody asked), or a kiss code.

Run at the server's end of the cable: the first argument is which, the second by how many seconds its clock is ahead.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 123
EPOCH = 2_208_988_800  # seconds from 1900 to 1970


def timestamp(seconds: float) -> int:
    """Seconds since 1970 as NTP has them."""
    return int((seconds + EPOCH) * 2**32) % 2**64


def answer(
    request: bytes,
    now: float,
    *,
    flags: int = 4 << 3 | 4,
    stratum: int = 2,
    code: bytes = b"GPS",
    delay: float = 0.01,
    origin: bytes | None = None,
    departed: float = 0.0,
) -> bytes:
    """A server's answer to a request that came `now` and is answered `departed` seconds later."""
    head = struct.pack("!BBbbII4sQ", flags, stratum, 6, -20, int(delay * 65536), 0, code, timestamp(now - 100))
    return head + (origin or request[40:48]) + struct.pack("!QQ", timestamp(now), timestamp(now + departed))


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Be a good one on this machine's loopback, in a thread: a machine in QEMU reaches it at 10.0.2.2."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _bind(sock)

        def serve() -> None:
            while True:
                request, peer = sock.recvfrom(1024)
                if not request:
                    return  # the end, see below
                sock.sendto(answer(request, time.time()), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            sock.sendto(b"", sock.getsockname())
            thread.join()


def _bind(sock: socket.socket) -> None:
    """Wait a minute for the port, of which there is one on a machine: another run of the tests may have it."""
    end = time.monotonic() + 60
    while True:
        try:
            return sock.bind(("127.0.0.1", PORT))
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(error.errno, f"port {PORT} of loopback: {error.strerror}; ss -ulp says whose") from error
            time.sleep(0.2)


def main() -> None:
    how, ahead = sys.argv[1], float(sys.argv[2])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("10.5.0.1", PORT))
    print("ready", flush=True)
    while True:
        request, peer = sock.recvfrom(1024)
        now = time.time() + ahead
        match how:
            case "good":
                sock.sendto(answer(request, now), peer)
            case "lying":
                for _ in range(3):
                    sock.sendto(answer(request, now + 1e6, origin=b"whatever"), peer)
            case "DENY" | "RATE" | "INIT":
                sock.sendto(answer(request, now, stratum=0, code=how.encode()), peer)
        print("asked", flush=True)


if __name__ == "__main__":
    main()
