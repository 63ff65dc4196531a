"""The kernel's uevents, by pyudev, on a node that runs no udevd."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# pyudev asks ctypes.util for its libraries' file names, which runs ldconfig or a compiler: the image has neither.
# Giving the answers in its place also saves 1 MB of modules that it would import.
_finder = ModuleType("ctypes.util")
vars(_finder)["find_library"] = {"udev": "libudev.so.1", "c": "libc.so.6"}.get
_found = sys.modules.setdefault("ctypes.util", _finder)

import pyudev  # noqa: E402

if _found is _finder:
    del sys.modules["ctypes.util"]  # whoever else imports it gets the real one

RECEIVE_BUFFER = 4 << 20  # bytes; loading a module can take longer than the default buffer's 200 uevents


class UeventsLostError(Exception):
    """The kernel dropped uevents because the receive buffer was full: what happened must be looked up in sysfs."""


@dataclass(frozen=True)
class Uevent:
    """One uevent. `devname` is the device node's path, or a network interface's name; `modalias` may be empty."""

    action: str
    subsystem: str
    devpath: str
    devname: str | None
    modalias: str


class Uevents:
    """A socket on which uevents arrive from the moment on that this is made. Raises OSError."""

    def __init__(self, buffer: int = RECEIVE_BUFFER) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "kernel")
        self._monitor.set_receive_buffer_size(buffer)
        self._monitor.start()
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))

    def close(self) -> None:
        """Stop listening; the monitor's own descriptor goes with the object."""
        self._socket.close()

    async def wait(self) -> None:
        """Return when there is something to read."""
        await readable(self._monitor.fileno())

    def pending(self) -> Iterator[Uevent]:
        """Those that have arrived. Raises UeventsLostError once after an overflow."""
        while (device := self._receive()) is not None:
            properties = device.properties
            yield Uevent(
                action=device.action or "",
                subsystem=device.subsystem or "",
                devpath=device.device_path,
                devname=properties.get("DEVNAME") or properties.get("INTERFACE"),
                modalias=properties.get("MODALIAS") or "",
            )

    def _receive(self) -> pyudev.Device | None:
        # pyudev's poll looks at POLLERR first and never takes the error off the socket: without reading SO_ERROR, one
        # overflow would make every later poll fail and the loop spin.
        try:
            return self._monitor.poll(timeout=0)
        except OSError as error:
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise UeventsLostError from error
            raise


async def readable(fd: int) -> None:
    """Return when `fd` is readable or has an error to be read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
