"""The devices worker: loads the modules that the hardware asks for, and tells PID 1 of devices and the power button.

It sleeps in an epoll of the kernel's uevent socket and the power buttons' devices, and ends when all are quiet.
"""

import asyncio
import os
import select
import time
from contextlib import closing
from functools import partial

from structlog import get_logger

from initd import native
from initd.api.protocol import ApiError, Code
from initd.devices import aliases, buttons, uevents
from initd.devices.disks import disks
from initd.devices.files import files
from initd.devices.uevents import Uevent, Uevents, UeventsLostError
from initd.files import readable
from initd.worker import DESCRIPTORS, Link, Rest

REPORTED = frozenset({"block", "net", "virtio-ports"})
ALIAS_LIMIT = 4096  # libkmod's
log = get_logger()


async def serve(link: Link) -> None:
    """Coldplug, then hotplug, until PID 1 closes its end.

    Sends `settled` after a walk of sysfs that loads what is missing: at the start, and again if uevents were lost, so
    PID 1 looks afresh for what it waits for whenever it comes. Sends `device` and `power_button` as they happen, and
    answers `disks []`, `files [mount point, path]` and `modprobe [alias]`.
    """
    link.handle("modprobe", _modprobe)
    link.handle("disks", partial(asyncio.to_thread, disks))  # one that hangs must not hold up hotplug or power button
    link.handle("files", lambda base, path: asyncio.to_thread(files, base, path))
    with closing(Devices(link)) as devices:
        async with asyncio.TaskGroup() as group:
            hotplug = group.create_task(devices.run())
            await link.serve(devices.rest)
            hotplug.cancel()


async def _modprobe(alias: object) -> list[str]:
    if not isinstance(alias, str) or not 0 < len(alias) <= ALIAS_LIMIT or "\0" in alias:
        raise ApiError(Code.INVALID_ARGUMENT, f"modprobe: alias: {alias!r}, expected a module's name or alias")
    try:
        return native.load_module(alias)
    except OSError as error:
        raise ApiError(Code.FAILED_PRECONDITION, str(error)) from error


class Devices:
    """What was loaded so far, and the power buttons being watched, their names by descriptor."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._uevents = Uevents()  # before the walk: what appears during it must not be missed
        self._tried: set[str] = set()
        self._buttons: dict[int, str] = {}
        self._ready = select.epoll()
        self._ready.register(self._uevents, select.EPOLLIN)
        while len(link.kept) > 1:
            fd = link.kept.pop()
            self._watch(fd, os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    def close(self) -> None:
        self._ready.close()
        self._uevents.close()
        for fd in self._buttons:
            os.close(fd)

    def rest(self) -> Rest | None:
        """Uevents and buttons are heard by PID 1 as well, if they are not too many for it."""
        heard = [self._uevents.fileno(), *self._buttons]
        return Rest(None, heard) if len(heard) <= DESCRIPTORS else None

    async def run(self) -> None:
        """Coldplug, then take uevents and presses as they come, for ever."""
        self._watch_buttons()
        await self._take_presses()
        while self._link.kept:
            for event in uevents.kept(self._link.kept.pop()):
                await self._take(event)
        await self._coldplug()
        while True:
            await readable(self._ready.fileno())
            await self._take_presses()
            await self._take_uevents()

    async def _coldplug(self) -> None:
        """Walk sysfs until it asks for nothing new: a bus that a module drives shows its devices only then."""
        started = time.monotonic()
        modules = 0
        while not self._tried.issuperset(found := aliases.walk()):
            for alias in found:
                modules += self._load(alias)
                await asyncio.sleep(0)  # so that requests are answered between two modules
                await self._take_presses()
        self._watch_buttons()
        milliseconds = round((time.monotonic() - started) * 1000, 1)
        summary = {"modules": modules, "devices": len(found), "milliseconds": milliseconds}
        log.info("devices settled", **summary)
        await self._link.notify("settled", summary)

    async def _take_uevents(self) -> None:
        try:
            for event in self._uevents.pending():
                await self._take(event)
        except UeventsLostError:
            log.warning("uevents lost, walking sysfs again")
            await self._coldplug()

    async def _take(self, event: Uevent) -> None:
        self._link.touch()
        if event.action in ("add", "bind") and event.modalias:
            self._load(event.modalias)
        if event.subsystem == "input":
            self._watch_buttons()
        if event.subsystem in REPORTED:
            fields = event._asdict()
            del fields["modalias"]
            await self._link.notify("device", fields)

    def _load(self, alias: str) -> int:
        """Load what drives `alias`, once; returns how many modules that were."""
        if alias in self._tried:
            return 0
        self._tried.add(alias)
        self._link.touch()
        try:
            return len(native.load_module(alias))
        except OSError as error:
            # A driver that finds its hardware absent says so by failing: the others are loaded all the same.
            log.warning("module not loaded", alias=alias[:200], error=str(error))
            return 0

    def _watch_buttons(self) -> None:
        for name in buttons.find():
            if name in self._buttons.values():
                continue
            try:
                fd = buttons.open_button(name)
            except OSError as error:
                log.warning("power button not watched", device=name, error=error.strerror)
                continue
            self._watch(fd, name)

    def _watch(self, fd: int, name: str) -> None:
        self._buttons[fd] = name
        self._ready.register(fd, select.EPOLLIN)

    async def _take_presses(self) -> None:
        for fd, name in list(self._buttons.items()):
            try:
                if buttons.was_pressed(fd):
                    await self._pressed(name)
            except OSError:  # unplugged
                self._ready.unregister(fd)  # closing is not enough while PID 1 has the same device
                del self._buttons[fd]
                os.close(fd)

    async def _pressed(self, name: str) -> None:
        log.info("power button pressed", device=name)
        await self._link.notify("power_button")
