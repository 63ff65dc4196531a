"""The hardware watchdog, fed by PID 1's own loop, so that a loop that hangs is a reboot; and what ended the last boot.

Sources: the kernel's Documentation/watchdog/watchdog-api.rst, Documentation/ABI/testing/pstore, and
Documentation/admin-guide/kernel-parameters.txt (printk.always_kmsg_dump).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from contextlib import suppress

DEVICE = "/dev/watchdog0"
STATUS = "/sys/class/watchdog/watchdog0/bootstatus"
PSTORE = "/sys/fs/pstore"
DUMP_ALWAYS = "/sys/module/printk/parameters/always_kmsg_dump"
# The last words of shutdown.py, or of native/rescue.c.
ASKED = re.compile(r'(?:reboot|shutdown|power off), asked for by [^"\n]+')
SOFTDOG = "softdog: Initiating system reboot"  # the kernel's drivers/watchdog/softdog.c: it keeps no boot status
# linux/watchdog.h
KEEP_ALIVE, SET_TIMEOUT, GET_TIMEOUT, CARD_RESET = 0x80045705, 0xC0045706, 0x80045707, 0x20
_INT = struct.Struct("@i")
LOG_BYTES = 64 << 10
UNKNOWN_SECONDS = 10  # the timeout of one that does not tell it: shorter than any that drivers begin with


def start(seconds: int) -> tuple[int, int]:
    """Begin to be watched: the descriptor, and after how many seconds without `feed` the machine is reset, which may
    differ from what was asked. Raises OSError if it cannot be opened, FileNotFoundError if there is no watchdog.
    """
    fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
    for request in (SET_TIMEOUT, GET_TIMEOUT):  # it has one timeout, or takes no such long one
        with suppress(OSError):
            return fd, _INT.unpack(fcntl.ioctl(fd, request, _INT.pack(seconds)))[0] or UNKNOWN_SECONDS
    return fd, UNKNOWN_SECONDS  # it is armed, and must be fed


def feed(fd: int) -> None:
    """Say that the loop runs. Raises OSError."""
    fcntl.ioctl(fd, KEEP_ALIVE, 0)


def keep_log() -> None:
    """Have the kernel put its log's end in the machine's store at each reboot, not only at a panic. Raises OSError."""
    with open(DUMP_ALWAYS, "w", encoding="ascii") as file:
        file.write("Y")


def last_boot() -> tuple[str | None, str | None]:
    """What is known of how the last boot ended: `panic`, `watchdog`, or who asked for it; and the log's end.

    The kernel's records are taken out of the machine's store, which has place for few.
    """
    records = []
    try:
        for name in sorted(entry for entry in os.listdir(PSTORE) if entry.startswith("dmesg-")):
            with open(f"{PSTORE}/{name}", encoding="utf-8", errors="replace") as file:
                records.append(file.read(LOG_BYTES))
            os.unlink(f"{PSTORE}/{name}")
    except OSError:
        pass  # no store, or it fails: what was read is told
    log = "".join(reversed(records))[-LOG_BYTES:]  # the last part is the first file
    if any(record.startswith("Panic") for record in records):
        return "panic", log
    if SOFTDOG in log:
        return "watchdog", log
    asked = ASKED.findall(log)
    if asked:
        return asked[-1], log
    try:
        with open(STATUS, encoding="ascii") as file:
            return ("watchdog" if int(file.read(), 0) & CARD_RESET else None), log or None
    except (OSError, ValueError):
        return None, log or None
