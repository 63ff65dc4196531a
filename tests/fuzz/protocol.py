"""Throws bytes at the decoder and at a running server until time is up: `python -m tests.fuzz.protocol --seconds N`.

What is thrown is made from good frames by cutting, repeating, flipping and inserting, since plain noise is refused at
its first byte. What must hold:

- The decoder gives messages or ProtocolError, whatever the bytes, the same for one piece and for many, and never holds
  more than its limit.
- The server then answers a call on another connection, has kept no connection, and logged no fault of its own.

A failure prints the seed, with which `--seed` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from initd.api.protocol import Decoder, Limits, Message, Notification, ProtocolError, Request, Response, encode
from tests.unit.api_support import Running, running, until

_SEEDS = [
    encode(Request(0, "echo", ["text"])),
    encode(Request(1, "count", [3, 10])),
    encode(Request(2, "fail", ["set"])),
    encode(Request(3, "forever", [])),
    encode(Request(0xFFFFFFFF, "wait", [])),
    encode(Notification("cancel", [3])),
    encode(Notification("stream", [1, {"a": [None, True, 1.5, b"x", -1]}])),
    encode(Response(1, ["INTERNAL", "x"], None)),
    encode(Request(4, "echo", [[[[[[{"k": [1]}]]]]]])),
    b"\xc1", b"\xc7\x00\x05", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 40,
]  # fmt: skip
_LIMITS = Limits(message=256, depth=6, array=32, map=8)


def make(source: random.Random) -> bytes:
    """Return a few frames, most of them spoilt."""
    data = bytearray().join(source.choice(_SEEDS) for _ in range(source.randint(1, 8)))
    for _ in range(source.choice([0, 1, 1, 2, 5])):
        at = source.randrange(len(data) + 1)
        match source.randrange(4):
            case 0 if at < len(data):
                data[at] = source.randrange(256)
            case 1:
                del data[at : at + source.randint(1, 9)]
            case 2:
                data[at:at] = source.randbytes(source.randint(1, 9))
            case _:
                data[at:at] = data[max(0, at - source.randint(1, 99)) : at] * source.randint(1, 9)
    return bytes(data)


def pieces(data: bytes, source: random.Random) -> list[bytes]:
    """Cut data at random places."""
    cut, at = [], 0
    while at < len(data):
        length = source.choice([1, 2, 5, 20, 100])
        cut.append(data[at : at + length])
        at += length
    return cut


def decode(parts: list[bytes]) -> tuple[list[Message], bool]:
    """Return what the decoder makes of the parts, and whether it refused one."""
    decoder, messages = Decoder(_LIMITS), list[Message]()
    for part in parts:
        try:
            messages += decoder.feed(part)
        except ProtocolError as error:
            return [*messages, *error.messages], True
        held = decoder._fed - decoder._start
        if held > _LIMITS.message:
            raise AssertionError(f"the decoder holds {held} bytes")
    return messages, False


def check_decoder(seed: int) -> None:
    """Decode one input whole and cut. Raises AssertionError if that differs, or whatever the decoder lets out."""
    source = random.Random(seed)  # noqa: S311 - repeatable is what it has to be
    data = make(source)
    whole, cut = decode([data]), decode(pieces(data, source))
    # repr(), since a NaN equals nothing.
    if repr(whole) != repr(cut):
        raise AssertionError(f"{data!r} is {whole} whole and {cut} cut")


async def check_server(node: Running, seed: int) -> None:
    """Throw one input at the server from a few connections at once, and see that it is as before."""
    source = random.Random(seed)  # noqa: S311 - as above
    for _ in range(3):
        peer = await node.connect()
        for part in pieces(make(source), source):
            if not peer.writer.is_closing():
                peer.writer.write(part)
        if not peer.writer.is_closing():
            peer.writer.write_eof()
        while await peer.read():
            pass
        peer.writer.close()
    node.peers.clear()
    good = await node.connect()
    response = await good.call("echo", "alive")
    if response.result != "alive":
        raise AssertionError(f"the server answers {response}")
    good.writer.close()
    await until(lambda: not node.api.sessions)
    faults = [fields for event, fields in node.log.records if event == "api call failed" and fields["method"] != "fail"]
    node.log.records.clear()
    if faults:
        raise AssertionError(f"the server logged {faults}")


async def run(seconds: float, seed: int) -> int:
    """Fuzz both for so long; return how many inputs there were."""
    end, count = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder)) as node:
            while time.monotonic() < end:
                try:
                    for number in range(200):
                        check_decoder(seed + number)
                    await check_server(node, seed)
                except Exception:
                    print(f"fuzz: failed; repeat with --seed {seed}", file=sys.stderr)
                    raise
                seed += 200
                count += 201
    return count


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description="Fuzz the API's decoder and server.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))  # noqa: S311 - as above
    arguments = parser.parse_args()
    count = asyncio.run(run(arguments.seconds, arguments.seed))
    print(f"fuzz: {count} inputs in {arguments.seconds:g} s, no fault (seed {arguments.seed})")


if __name__ == "__main__":
    main()
