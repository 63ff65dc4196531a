"""A kernel and a clock made for tests: services run on them without a process, and years pass in no time."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Any, cast

from initd import cgroups, events, native
from initd.supervise import liveness, service, workers
from initd.supervise.reap import CLD_EXITED, CLD_KILLED, Reaper

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import pytest

    from initd.api.types import ServiceStatus
    from initd.supervise.service import Service


class Timer:
    """What call_later gives."""

    def __init__(self, at: float, run: Callable[[], object]) -> None:
        self.at = at
        self.run = run
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The part of an event loop that a service uses, and boottime(); time passes when `advance` says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.readers: dict[int, Callable[[], object]] = {}

    def boottime(self) -> float:
        return self.now

    def call_later(self, seconds: float, function: Callable[..., object], *args: object) -> Timer:
        timer = Timer(self.now + seconds, lambda: function(*args))
        self.timers.append(timer)
        return timer

    def add_reader(self, descriptor: int, function: Callable[[], object]) -> None:
        self.readers[descriptor] = function

    def remove_reader(self, descriptor: int) -> bool:
        return self.readers.pop(descriptor, None) is not None

    def pending(self) -> list[Timer]:
        """The timers that will still fire, the next one first."""
        self.timers = sorted((timer for timer in self.timers if not timer.cancelled), key=lambda timer: timer.at)
        return self.timers

    def advance(self, seconds: float) -> None:
        """Let time pass, and what is due happen at its moment."""
        end = self.now + seconds
        while (due := self.pending()) and due[0].at <= end:
            timer = self.timers.pop(0)
            self.now = timer.at
            timer.run()
        self.now = end

    def loop(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)


class Kernel:
    """Processes that exist only here: `alive` maps pids to what was spawned; `signals` is every one sent, in order."""

    def __init__(self) -> None:
        self.alive: dict[int, native.Spawn] = {}
        self.signals: list[tuple[int, int]] = []
        self.killed_cgroups: list[str] = []
        self.zombies: list[native.Exit] = []
        self.refuse: Exception | None = None
        self.most_alive = 0
        self.oom_kills = 0
        self.cgroup_error: OSError | None = None
        self.left_behind = False
        self.renewed_cgroups: list[str] = []
        self.opened_cgroups: list[str] = []
        self._pids: dict[int, int] = {}
        self._next = 100

    def spawn(self, spec: native.Spawn) -> native.Child:
        if self.refuse is not None:
            raise self.refuse
        self._next += 1
        pidfd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._pids[pidfd] = self._next
        self.alive[self._next] = spec
        self.most_alive = max(self.most_alive, len(self.alive))
        return native.Child(self._next, pidfd)

    def send(self, pidfd: int, number: int) -> None:
        os.fstat(pidfd)  # a descriptor that is closed already is a fault
        self.signals.append((self._pids[pidfd], number))

    def end(self, pid: int, code: int = CLD_EXITED, status: int = 0) -> None:
        """The process ends; it is a zombie until it is reaped."""
        del self.alive[pid]
        self.zombies.append(native.Exit(pid, 0, code, status))

    def obey(self) -> None:
        """Those that were sent SIGKILL end."""
        for pid, number in self.signals:
            if number == signal.SIGKILL and pid in self.alive:
                self.end(pid, CLD_KILLED, signal.SIGKILL)

    def wait_any(self) -> int | None:
        return self.zombies[0].pid if self.zombies else None

    def wait_pid(self, pid: int) -> native.Exit | None:
        return next((self.zombies.pop(index) for index, end in enumerate(self.zombies) if end.pid == pid), None)

    def renew_cgroup(self, path: str, _settings: object) -> list[str]:
        if self.left_behind:
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        self.renewed_cgroups.append(path)
        return []

    def open_cgroup(self, path: str) -> int:
        self.opened_cgroups.append(path)
        if self.cgroup_error is not None:
            raise self.cgroup_error
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


class World:
    """One kernel, one clock, one reaper, one event log, and the functions of initd that now use them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.kernel = Kernel()
        self.clock = Clock()
        self.reaper = Reaper()
        self.events = events.EventLog()
        for name, fake in (("spawn", self.kernel.spawn), ("pidfd_send_signal", self.kernel.send)):
            patch.setattr(native, name, fake)
        for name, wait in (("wait_any", self.kernel.wait_any), ("wait_pid", self.kernel.wait_pid)):
            patch.setattr(native, name, wait)
        patch.setattr(cgroups, "configure", lambda _path, _settings: [])
        patch.setattr(cgroups, "renew", self.kernel.renew_cgroup)
        patch.setattr(cgroups, "open_directory", self.kernel.open_cgroup)
        patch.setattr(cgroups, "kill", self.kernel.killed_cgroups.append)
        patch.setattr(cgroups, "oom_kills", lambda _path: self.kernel.oom_kills)
        for module in (service, liveness, events, workers):
            patch.setattr(module, "boottime", self.clock.boottime)

    def end(self, ended: Service, code: int = CLD_EXITED, status: int = 1) -> None:
        """The service's main process ends and is reaped."""
        assert ended.process is not None
        self.kernel.end(ended.process.pid, code, status)
        self.reaper.reap()

    def advance(self, seconds: float) -> None:
        """Let time pass; processes that were killed meanwhile end at its end."""
        self.clock.advance(seconds)
        self.kernel.obey()
        self.reaper.reap()


def states(status: ServiceStatus | Service) -> list[str]:
    """The states of a service's history, oldest first."""
    history: Any = status["history"] if isinstance(status, dict) else status.history
    return [entry["state"] for entry in history]
