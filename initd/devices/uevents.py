"""The kernel's uevents, by pyudev, on a node that runs no udevd."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import NamedTuple

# pyudev asks ctypes.util for its libraries' file names, which runs ldconfig or a compiler: the image has neither.
# Giving the answers in its place also saves 1 MB of modules that it would import.
_finder = ModuleType("ctypes.util")
vars(_finder)["find_library"] = {"udev": "libudev.so.1", "c": "libc.so.6"}.get
_found = sys.modules.setdefault("ctypes.util", _finder)

import pyudev  # noqa: E402

from initd import bpf  # noqa: E402
from initd.bpf import Op  # noqa: E402

if _found is _finder:
    del sys.modules["ctypes.util"]  # whoever else imports it gets the real one

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
    """A socket on which hardware's uevents arrive from the moment on that this is made. Raises OSError."""

    def __init__(self, buffer: int = RECEIVE_BUFFER) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "kernel")
        self._monitor.set_receive_buffer_size(buffer)
        self._monitor.start()
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))
        bpf.attach(self._socket, _HARDWARE_ONLY)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening; the monitor's own descriptor goes with the object."""
        self._socket.close()

    def pending(self) -> Iterator[Uevent]:
        """Those that have arrived. Raises UeventsLostError once after an overflow."""
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                yield _uevent(device.properties)
        except OSError as error:
            # pyudev's poll looks at POLLERR first and never takes the error off the socket: without reading SO_ERROR,
            # one overflow would make every later poll fail and the loop spin.
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise UeventsLostError from error
            raise


def kept(fd: int) -> Iterator[Uevent]:
    """Those that wait in the socket of an earlier process, which libudev cannot adopt: as many as were not lost. Closes
    fd.
    """
    with socket.socket(fileno=fd) as kernel:
        while True:
            try:
                data, (port, _groups) = kernel.recvfrom(_LONGEST)
            except OSError:
                return
            if port == 0:  # from the kernel
                # A first line, then KEY=VALUE, a NUL after each (Linux lib/kobject_uevent.c).
                lines = data.decode("utf-8", "replace").split("\0")
                values = dict(line.split("=", 1) for line in lines[1:] if "=" in line)
                if "DEVNAME" in values:
                    values["DEVNAME"] = f"/dev/{values['DEVNAME']}"
                yield _uevent(values)


def _uevent(values: Mapping[str, str]) -> Uevent:
    return Uevent(
        action=values.get("ACTION", ""),
        subsystem=values.get("SUBSYSTEM", ""),
        devpath=values.get("DEVPATH", ""),
        devname=values.get("DEVNAME") or values.get("INTERFACE"),
        modalias=values.get("MODALIAS", ""),
    )
