"""The power button: an input device that can send KEY_POWER (Linux Documentation/input/event-codes.rst)."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from initd.devices.aliases import entries, read
from initd.devices.uevents import readable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEY_POWER = 116
EV_KEY = 1
PRESSED = 1
INPUT_EVENT = struct.Struct("@llHHi")  # struct input_event: a timeval, type, code, value
LONG_BITS = 8 * struct.calcsize("@l")


def has_power_key(bitmap: str) -> bool:
    """Whether a capabilities/key attribute has KEY_POWER: hexadecimal longs, the highest first."""
    words = bitmap.split()
    index, bit = divmod(KEY_POWER, LONG_BITS)
    return index < len(words) and bool(int(words[-1 - index], 16) >> bit & 1)


def find(sysfs: str = "/sys") -> list[str]:
    """The names ("event0") of the input devices that have a power key."""
    folder = f"{sysfs}/class/input"
    return [
        name
        for name in entries(folder)
        if name.startswith("event") and has_power_key(read(f"{folder}/{name}/device/capabilities/key"))
    ]


async def watch(path: str, pressed: Callable[[], Awaitable[None]]) -> None:
    """Await `pressed` at each press of the power key, until the device at `path` goes away.

    Raises OSError if it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            await readable(fd)
            try:
                data = os.read(fd, 64 * INPUT_EVENT.size)
            except BlockingIOError:
                continue
            except OSError:
                return  # ENODEV: unplugged
            if not data:
                return
            whole = len(data) - len(data) % INPUT_EVENT.size
            for *_, kind, code, value in INPUT_EVENT.iter_unpack(data[:whole]):
                if (kind, code, value) == (EV_KEY, KEY_POWER, PRESSED):
                    await pressed()
    finally:
        os.close(fd)
