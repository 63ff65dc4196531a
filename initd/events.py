"""The event log: what happened on the node since it booted, bounded, numbered, and followed by whoever asks.

`emit` works before the loop runs: PID 1's first phases are events like everything later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

from initd.files import read

if TYPE_CHECKING:
    from initd.api.types import Event

KEPT = 2000
PRODUCT_UUID = "/sys/class/dmi/id/product_uuid"
_Item = TypeVar("_Item")


def boottime() -> float:
    """Seconds since boot, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's random identifier of this boot; all zeros where /proc does not tell."""
    return read("/proc/sys/kernel/random/boot_id") or "00000000-0000-0000-0000-000000000000"


def newest(ring: deque[_Item], count: int) -> list[_Item]:
    """The last `count` items, oldest first. It costs what they do, however many more there are."""
    return list(islice(reversed(ring), max(min(count, len(ring)), 0)))[::-1]


class EventLog:
    """A ring of the last `KEPT` events; `seq` starts at 1."""

    def __init__(self, kept: int = KEPT) -> None:
        self._ring: deque[Event] = deque(maxlen=kept)
        self._seq = 0
        self._wakers: set[Callable[[], None]] = set()

    def emit(self, kind: str, **fields: object) -> Event:
        """Append an event and wake the followers; returns it. Fields must be msgpack's plain types."""
        self._seq += 1
        now = {"seq": self._seq, "time": time.time(), "monotonic": round(boottime(), 6), "kind": kind}
        event = cast("Event", now | fields)
        self._ring.append(event)
        for wake in list(self._wakers):
            wake()
        return event

    def watch(self, waker: Callable[[], None]) -> None:
        """Call `waker` after each event from now on."""
        self._wakers.add(waker)

    def last(self, count: int) -> tuple[int, list[Event]]:
        """The number of the last event, and as many as `count` of them: what `resume` takes."""
        return self._seq, list(self._ring)[-count:]

    def resume(self, seq: int, events: list[Event]) -> None:
        """Go on after the event number `seq` of another life of PID 1, of which `events` are kept."""
        self._seq = seq
        self._ring.extend(events)

    def since(self, seq: int) -> list[Event]:
        """The kept events whose `seq` is greater than `seq`, oldest first."""
        return newest(self._ring, self._seq - seq)

    async def follow(self, seq: int = 0) -> AsyncGenerator[Event, None]:
        """Every event after `seq`, then each new one, for ever. A follower slower than the ring sees a gap in `seq`."""
        from asyncio import Event as Signal  # noqa: PLC0415 asyncio comes later than the first events

        changed = Signal()
        self._wakers.add(changed.set)
        try:
            while True:
                changed.clear()
                for event in self.since(seq):
                    seq = event["seq"]
                    yield event
                await changed.wait()
        finally:
            self._wakers.discard(changed.set)


def machine_id() -> str:
    """32 hexadecimal digits that name this machine: its SMBIOS UUID where it has one, else this boot's identifier."""
    digits = read(PRODUCT_UUID).replace("-", "").lower()  # not every machine's firmware says one
    good = len(digits) == 32 and digits.strip("0f") and not digits.strip("0123456789abcdef")
    return digits if good else boot_id().replace("-", "")
