"""A DHCP server that dnsmasq is too well-behaved to be: `garbage` sends nonsense first, `once` never renews.

Run at the server's end of the cable. It leases 10.5.0.77 for 5 seconds (`once`).
"""

from __future__ import annotations

import random
import socket
import struct
import sys

MAGIC = b"\x63\x82\x53\x63"
OPTIONS = b"\x36\x04\x0a\x05\x00\x01\x33\x04\x00\x00\x00\x05\x01\x04\xff\xff\xff\x00\x03\x04\x0a\x05\x00\x01\xff"


def answer(request: bytes, kind: int) -> bytes:
    head = b"\x02" + request[1:12] + bytes(4) + bytes((10, 5, 0, 77)) + bytes(8)
    return head + request[28:236] + MAGIC + bytes((53, 1, kind)) + OPTIONS


def nonsense(request: bytes) -> list[bytes]:
    """Answers to the right client and transaction, each wrong in another way."""
    good = answer(request, 2)
    chance = random.Random(5)  # noqa: S311 - the same nonsense each time
    torn = [good[:length] for length in range(200, len(good), 3)]
    lying = [
        good[:240] + bytes((code, length)) + b"x" for code in (1, 3, 6, 51, 53, 54, 121) for length in (0, 1, 5, 255)
    ]
    flipped = []
    for _ in range(200):
        data = bytearray(good)
        data[chance.randrange(len(data))] = chance.randrange(256)
        flipped.append(bytes(data[:240] + chance.randbytes(chance.randrange(60))))
    absurd = [
        good.replace(struct.pack("!BBI", 51, 4, 5), struct.pack("!BBI", 51, 4, 0)),
        good.replace(b"\xff\xff\xff\0", bytes(4)),
    ]
    return [b"", chance.randbytes(700), *torn, *lying, *flipped, *absurd]


def main() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"srv0")
    sock.bind(("", 67))
    print("ready", flush=True)
    while True:
        request = sock.recv(4096)
        kind = request[request.index(MAGIC) + 6]
        if sys.argv[1] == "garbage":
            for data in nonsense(request):
                sock.sendto(data, ("255.255.255.255", 68))
            print("sent", flush=True)
            return
        if any(request[12:16]):
            continue  # a renewal
        sock.sendto(answer(request, 2 if kind == 1 else 5), ("255.255.255.255", 68))
        if kind == 3:
            print("granted", flush=True)
            return


if __name__ == "__main__":
    main()
