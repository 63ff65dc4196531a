"""What a service writes: its pipe, cut into lines and kept in a bounded ring that readers can follow."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING

from initd.events import newest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from initd.api.types import LogLine

LINES = 1000
LINE_BYTES = 8 << 10
RING_BYTES = 256 << 10
CHUNK = 8 << 10
PIPE_BYTES = 64 << 10  # pipe(7)


class Output:
    """The ring of one service. Its pipe lives as long as PID 1, so a restart loses no line and needs no new reader."""

    def __init__(self, pipe: tuple[int, int] | None = None) -> None:
        self.reader, self.writer = pipe or os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self._lines: deque[LogLine] = deque()
        self._size = 0
        self._count = 0
        self._rest = b""
        self._wakers: set[Callable[[], None]] = set()

    def drain(self) -> None:
        """Read once what the pipe holds; never blocks. One read a turn, so that a flood delays no one else."""
        try:
            data = os.read(self.reader, CHUNK)
        except BlockingIOError:
            return
        self.feed(data)

    def end(self) -> None:
        """Take what the pipe holds, and what comes then for another line: who wrote is gone."""
        for _ in range(PIPE_BYTES // CHUNK):
            self.drain()
        if self._rest:
            self.feed(b"\n")

    def feed(self, data: bytes) -> None:
        """Cut `data` into lines; one longer than `LINE_BYTES` becomes several."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        before = self._count
        for line in lines:
            self._add(self._cut(line))
        self._rest = self._cut(self._rest)
        if self._count > before:
            for wake in list(self._wakers):
                wake()

    def _cut(self, line: bytes) -> bytes:
        """Add what is over the bound; returns what is left."""
        while len(line) > LINE_BYTES:
            self._add(line[:LINE_BYTES])
            line = line[LINE_BYTES:]
        return line

    def _add(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        self._count += 1
        self._lines.append({"time": time.time(), "text": text, "dropped": 0})
        self._size += len(text)
        while self._size > RING_BYTES or len(self._lines) > LINES:
            self._size -= len(self._lines.popleft()["text"])

    def tail(self, count: int) -> list[LogLine]:
        """The last `count` lines that are kept, oldest first."""
        return newest(self._lines, count)

    async def follow(self, tail: int) -> AsyncGenerator[LogLine, None]:
        """The last `tail` lines, then each new one, for ever; `dropped` tells a slow reader how many it missed."""
        from asyncio import Event  # noqa: PLC0415 asyncio comes later than the first lines

        changed = Event()
        self._wakers.add(changed.set)
        seen = self._count - min(max(tail, 0), len(self._lines))
        try:
            while True:
                changed.clear()
                lines = newest(self._lines, self._count - seen)
                missed, seen = self._count - seen - len(lines), self._count
                for line in lines:
                    yield {**line, "dropped": missed}
                    missed = 0
                await changed.wait()
        finally:
            self._wakers.discard(changed.set)
