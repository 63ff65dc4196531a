"""The power button: an input device that can send KEY_POWER (Linux Documentation/input/event-codes.rst)."""

import errno
import os
import struct

from initd.devices.aliases import entries
from initd.files import read

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


def open_button(name: str) -> int:
    """Return a descriptor that hears of the presses from now on. Raises OSError."""
    return os.open(f"/dev/input/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def was_pressed(fd: int) -> bool:
    """Whether the power key went down since the last look. Raises OSError once the device is gone."""
    try:
        data = os.read(fd, 64 * INPUT_EVENT.size)
    except BlockingIOError:
        return False
    if not data:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    whole = len(data) - len(data) % INPUT_EVENT.size
    return any(event[2:] == (EV_KEY, KEY_POWER, PRESSED) for event in INPUT_EVENT.iter_unpack(data[:whole]))
