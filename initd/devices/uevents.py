"""The kernel's uevents (Linux lib/kobject_uevent.c), read from its socket: there is no udevd on the node."""

import errno
import socket
from collections.abc import Iterator
from typing import NamedTuple

from initd import bpf
from initd.bpf import Op

_NETLINK_KOBJECT_UEVENT, _FROM_KERNEL = 15, 1  # linux/netlink.h; its first group, which no udevd repeats
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
# A uevent is "ACTION@/devices/...". Devices that are no hardware, such as the veth pairs of pods, wake nobody.
_ACTION_LENGTHS = (3, 4, 6, 7)  # add, bind or move, change or remove or unbind or online, offline
_HARDWARE_ONLY = bpf.assemble(
    *(
        line
        for at in _ACTION_LENGTHS
        for line in (
            Op(bpf.LOAD_BYTE, at),
            Op(bpf.EQUAL, ord("@"), false=f"not {at}"),
            Op(bpf.LOAD_WORD, at + 1),
            Op(bpf.EQUAL, int.from_bytes(b"/dev"), false="drop"),
            Op(bpf.LOAD_WORD, at + 9),
            Op(bpf.EQUAL, int.from_bytes(b"/vir"), true="drop", false="take"),
            f"not {at}",
        )
    ),
    "take",
    Op(bpf.RETURN, 0xFFFFFFFF),
    "drop",
    Op(bpf.RETURN, 0),
)
_LONGEST = 8192  # bytes of a uevent; the kernel's buffer for one has 2048
RECEIVE_BUFFER = 4 << 20  # bytes; loading a module can take longer than the default buffer's 200 uevents


class UeventsLostError(Exception):
    """The kernel dropped uevents because the receive buffer was full: what happened must be looked up in sysfs."""


class Uevent(NamedTuple):
    """One uevent. `devname` is the device node's path, or a network interface's name; `modalias` may be empty."""

    action: str
    subsystem: str
    devpath: str
    devname: str | None
    modalias: str


class Uevents:
    """A socket on which hardware's uevents arrive from the moment on that this is made. `kept` is that of an earlier
    process. Raises OSError.
    """

    def __init__(self, buffer: int = RECEIVE_BUFFER, kept: int | None = None) -> None:
        if kept is not None:
            self._socket = socket.socket(fileno=kept)
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        bpf.attach(self._socket, _HARDWARE_ONLY)
        self._socket.bind((0, _FROM_KERNEL))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def pending(self) -> Iterator[Uevent]:
        """Those that have arrived. Raises UeventsLostError once after an overflow."""
        while True:
            try:
                data, (port, _groups) = self._socket.recvfrom(_LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise UeventsLostError from error
                raise
            if port == 0:  # from the kernel
                # A first line, then KEY=VALUE, a NUL after each.
                lines = data.decode("utf-8", "replace").split("\0")
                values = dict(line.split("=", 1) for line in lines[1:] if "=" in line)
                yield Uevent(
                    action=values.get("ACTION", ""),
                    subsystem=values.get("SUBSYSTEM", ""),
                    devpath=values.get("DEVPATH", ""),
                    devname=f"/dev/{values['DEVNAME']}" if "DEVNAME" in values else values.get("INTERFACE"),
                    modalias=values.get("MODALIAS", ""),
                )
