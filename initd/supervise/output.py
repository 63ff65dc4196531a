"""What a service writes: its pipe, cut into lines, kept in a bounded ring that readers can follow, and in a file."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from contextlib import suppress
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


class LogFile:
    """The lines of one service as the kubelet writes those of containers, for whoever ships logs, and for PID 1's next
    life. It lies on a tmpfs, which never lets PID 1 wait; over RING_BYTES it becomes NAME.log.1, and another is begun.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self.dropped = 0

    def write(self, lines: list[LogLine]) -> None:
        """Append lines. Those that find no room are dropped, and the next ones come after a word about it."""
        if self.dropped:
            lines = [{"time": time.time(), "text": f"initd: {self.dropped} lines dropped", "dropped": 0}, *lines]
        data = "".join(f"{_stamp(line['time'])} stdout F {line['text']}\n" for line in lines).encode()
        try:
            if self._fd < 0:
                self._fd = _open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            size = os.fstat(self._fd).st_size
            if os.write(self._fd, data) != len(data):
                os.ftruncate(self._fd, size)
                raise OSError  # noqa: TRY301 no more than a part of it found room
        except OSError:
            self.dropped += len(lines) - bool(self.dropped)
            return
        self.dropped = 0
        if size + len(data) > RING_BYTES:
            os.close(self._fd)
            self._fd = -1
            try:
                os.rename(self._path, f"{self._path}.1")
            except OSError:
                with suppress(OSError):
                    os.unlink(self._path)  # bounded in any case

    def read(self) -> list[LogLine]:
        """What an earlier life of PID 1 wrote, oldest first."""
        from datetime import datetime  # noqa: PLC0415 such a life alone needs it

        lines: list[LogLine] = []
        for path in (f"{self._path}.1", self._path):
            try:
                with open(_open(path, os.O_RDONLY), encoding="utf-8", errors="replace", newline="\n") as file:
                    for line in file:
                        stamp, _, _, text = line.removesuffix("\n").split(" ", 3)
                        lines.append({"time": datetime.fromisoformat(stamp).timestamp(), "text": text, "dropped": 0})
            except (OSError, ValueError):
                continue  # there is none, or it is not whole: what was read counts
        return lines


def _open(path: str, flags: int) -> int:
    """A regular file, whatever a pod that was given /run has put there: a FIFO would let PID 1 wait for its other end.

    Raises OSError.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def _stamp(seconds: float) -> str:
    """Seconds since 1970 in RFC 3339, as CRI's log format has them."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1e9):09d}Z"


class Output:
    """What one service wrote. Its pipe, which an earlier life of PID 1 may have left, lives as long as PID 1, so that a
    restart loses no line and needs no new reader.
    """

    def __init__(self, path: str, pipe: tuple[int, int] | None = None) -> None:
        self.reader, self.writer = pipe or os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self._file = LogFile(path)
        self._lines: deque[LogLine] = deque()
        self._size = 0
        self._count = 0
        self._rest = b""
        self._wakers: set[Callable[[], None]] = set()
        if pipe is not None:
            for line in self._file.read():
                self._add(line)

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
            self._add_text(self._cut(line))
        self._rest = self._cut(self._rest)
        if self._count > before:
            new = newest(self._lines, self._count - before)
            self._file.dropped += self._count - before - len(new)  # of a read that holds more than the ring does
            self._file.write(new)
            for wake in list(self._wakers):
                wake()

    def _cut(self, line: bytes) -> bytes:
        """Add what is over the bound; returns what is left."""
        while len(line) > LINE_BYTES:
            self._add_text(line[:LINE_BYTES])
            line = line[LINE_BYTES:]
        return line

    def _add_text(self, line: bytes) -> None:
        self._add({"time": time.time(), "text": line.decode(errors="replace"), "dropped": 0})

    def _add(self, line: LogLine) -> None:
        self._count += 1
        self._lines.append(line)
        self._size += len(line["text"])
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
