"""The node: what PID 1 knows and holds, in one object that phases, API methods and shutdown share."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from initd import log, mounts, native, services
from initd.events import EventLog, boottime, machine_id
from initd.supervise.backoff import Backoff
from initd.supervise.reap import Reaper
from initd.supervise.service import Service
from initd.supervise.states import Event, State

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from initd.api.types import BootPhase, ClusterState, LastBoot, NetworkState, NodeStatus, TimeState, TurnInfo
    from initd.config.schema import Config
    from initd.config.sources import Found
    from initd.services import ServiceSpec
    from initd.shutdown import Shutdown
    from initd.supervise.workers import Worker


STEP_SECONDS = 0.5  # a clock that is off by more is set at once, one by less runs faster or slower for a while
PANIC_SECONDS = 1000.0  # a clock that was right and is off by more wants a second word: ntpd's threshold
EARLIEST, LATEST = 1_735_689_600, 4_102_444_800  # 2025 and 2100


class Node:
    """State of the node. Light: it exists before anything heavy is imported."""

    def __init__(self) -> None:
        self.exec_at = exec_time()
        self.boot_id = ""
        self.command_line: dict[str, str] = {}
        self.events = EventLog()
        self.reaper = Reaper()
        self.services: dict[str, Service] = {}
        self.workers: dict[str, Worker] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.phase = "booting"
        self.faults: dict[str, str] = {}
        self.boot_phases: list[BootPhase] = []
        self.listener: int | None = None
        self.found: Found | None = None
        self.config: Config | None = None
        self.config_error: str | None = None
        self.name: str | None = None
        self.address: str | None = None
        self.identity = "ephemeral"
        self.network: NetworkState | None = None
        self.cluster: ClusterState | None = None
        self.turn: TurnInfo | None = None
        self.clock: TimeState | None = None
        self.believed: float | None = None  # the offset that the last answer told, if it was doubted, else 0.0
        self.shutdown: Shutdown | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.on_service_change: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        self.rescue: int | None = None
        self.watchdog: tuple[int, int] | None = None  # descriptor, seconds
        self.last_boot: LastBoot = {"cause": None, "log": None}
        self.failures: list[str] = []
        self._ready: tuple[str, bool, list[str]] = ("", False, [])
        self._etc: dict[str, str] = {}

    def add_service(self, spec: ServiceSpec, pipe: tuple[int, int] | None = None, notify: int = -1) -> Service:
        """A service of the node, made if it is not there, with the descriptors of an earlier life of PID 1, if any."""
        if spec.name in self.services:
            return self.services[spec.name]
        service = self.services[spec.name] = Service(spec, self.events, self.reaper, pipe, notify)
        service.needs = lambda: next((name for name in spec.needs if not self._runs(name)), None)
        service.changed = self.service_changed
        return service

    def _runs(self, name: str) -> bool:
        return name in self.services and self.services[name].state is State.RUNNING

    def add_worker(self, name: str, pipe: tuple[int, int] | None = None) -> Worker:
        """A worker of the node; see `add_service`."""
        from initd.supervise.workers import Worker  # noqa: PLC0415 it imports asyncio: while containerd starts

        if name in self.workers:
            return self.workers[name]
        worker = self.workers[name] = Worker(services.worker(name), self.events, self.reaper, pipe)
        worker.changed = lambda _worker: self.on_change()
        return worker

    def status(self) -> NodeStatus:
        reasons, end = self.reasons(), self.shutdown
        return {
            "name": self.name,
            "address": self.address,
            "phase": self.phase,
            "ready": not reasons,
            "reasons": reasons,
            "boot_id": self.boot_id,
            "uptime_seconds": boottime(),
            "config_source": self.found.source if self.found else None,
            "identity": self.identity,
            "time": self._time(),
            "failures": self.failures,
            "shutdown": {"action": end.action, "by": end.by, "seconds_left": end.left()} if end else None,
            "cluster": self.cluster,
            "turn": self.turn,
        }

    def reasons(self) -> list[str]:
        """Why the node is not ready, a line each; empty when it is."""
        reasons = [f"{name}: {text}" for name, text in self.faults.items()]
        if self.phase != "running":
            reasons.append(f"phase is {self.phase}")
        if self.network is None:
            reasons.append("network: not configured yet")
        else:
            reasons += [f"network: {reason}" for reason in self.network["reasons"]]
        for service in self.services.values():
            if service.state is not State.RUNNING:
                reasons.append(f"{service.spec.name}: {service.state.value}")
            elif not service.healthy:
                reasons.append(f"{service.spec.name}: not healthy yet")
        if "cluster" in self.workers:
            if self.workers["cluster"].state is State.CRASH_LOOP:
                reasons.append(f"cluster: its worker is in {State.CRASH_LOOP.value}")
            elif self.cluster is None or not self.cluster["ready"]:
                reasons.append(f"cluster: {(self.cluster and self.cluster['reason']) or 'not asked yet'}")
        return reasons

    def update(self) -> None:
        """Say so in an event if the phase, readiness or its reasons changed."""
        reasons = self.reasons()
        now = (self.phase, not reasons, reasons)
        if now == self._ready:
            return
        changed, self._ready = now[:2] != self._ready[:2], now
        if changed:
            log.info(f"node: {self.phase}", ready=not reasons, **({"reasons": reasons} if reasons else {}))
        self.events.emit("node", phase=self.phase, ready=not reasons, reasons=reasons)

    def enter(self, phase: str) -> None:
        """Go to another phase of the node's life: running, maintenance or stopping. Stopping is the last."""
        if self.phase != "stopping":
            self.phase = phase
        self.update()

    def works(self, name: str) -> None:
        """What a phase of the boot failed to do works now: it is no reason any more."""
        if self.faults.pop(name, None) is not None:
            self.update()

    def service_changed(self, service: Service) -> None:
        """Let the services that wait for this one go on, and update the node."""
        if service.state is State.RUNNING:
            for other in self.services.values():
                if other.state is State.BLOCKED and other.needs() is None:
                    other.handle(Event.UNBLOCKED, f"{service.spec.name} is ready")
            importing = any(task.get_name() == "images" for task in self.tasks)
            if service.spec.name == "containerd" and "images" in self.faults and not importing:
                self.spawn_task(self._import_images(), "images")
        self.on_service_change()
        self.update()
        self.on_change()

    async def _import_images(self) -> None:
        from initd import boot  # noqa: PLC0415 it imports this module

        await boot.import_images(self)
        self.works("images")

    def spawn_task(self, work: Any, name: str) -> None:
        """Run a coroutine beside the loop: what it raises is logged. A function that gives one is then called again."""
        if self.loop is None:
            return
        task = self.loop.create_task(self._guard(work, name), name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def end_task(self, name: str) -> None:
        """Cancel what was begun by that name."""
        for task in self.tasks:
            if task.get_name() == name:
                task.cancel()

    async def _guard(self, work: Any, name: str) -> None:
        import asyncio  # noqa: PLC0415 the loop runs now

        backoff, told, again = Backoff(), "", callable(work)
        while True:
            begun = boottime()
            try:
                await (work() if again else work)
            except Exception as failure:  # noqa: BLE001 a task's fault is a line in the log, never PID 1's end
                if str(failure) != told:
                    log.exception(f"task {name} failed", failure, again=again)
                told = str(failure)
            else:
                return
            if not again:
                return
            await asyncio.sleep(backoff.failed(boottime() - begun))

    def network_changed(self, said: object) -> None:
        """Take the network worker's view over, and write what follows from it.

        Raises ValueError for what is none: the last good one stays.
        """
        import msgspec  # noqa: PLC0415 imported with the configuration's schema

        from initd.api.types import NetworkState  # noqa: PLC0415

        state = msgspec.convert(said, NetworkState)
        for word in (state["hostname"], state["address"], *state["dns"]):
            if word is not None and (word.split() != [word] or not word.isprintable()):
                raise ValueError(f"found {word!r}, expected one word")  # it goes into files, and to the kubelet
        before, self.network = self.network, state
        if before is None or state["dns"] != before["dns"]:
            # Without a name server it is empty, but there: containerd fails every sandbox without it.
            self._write_etc("resolv.conf", "".join(f"nameserver {server}\n" for server in state["dns"][:3]))
        address = state["address"]
        if before is None or (before["ready"], before["address"]) != (state["ready"], address):
            log.info("network", ready=state["ready"], address=address, reasons=state["reasons"])
            self.events.emit("network", ready=state["ready"], address=address, reasons=state["reasons"])
        if self.name is not None and self.address is None and address is not None:
            # The boot went on without an address; this is the one the kubelet was missing.
            self.identify(self.name, address)
            kubelet = self.services.get("kubelet")
            if kubelet is not None and self.config is not None:
                kubelet.argv = services.kubelet_argv(self.name, address, self.config)
                kubelet.restart(f"the node has the address {address} now")
        if state["ready"]:
            self.works("network")
        self.update()

    def cluster_changed(self, said: object) -> None:
        """Take the cluster worker's view over. Raises ValueError for what is none."""
        import msgspec  # noqa: PLC0415 imported with the configuration's schema

        from initd.api.types import ClusterState  # noqa: PLC0415

        self.cluster = msgspec.convert(said, ClusterState)
        told = {key: value for key, value in self.cluster.items() if key != "server"}
        log.info("cluster", **told)
        self.events.emit("cluster", **told)
        self.update()

    def time_changed(self, said: object) -> None:
        """Set the clock by what the network worker heard of the time. Raises ValueError for what is no time at all."""
        import msgspec  # noqa: PLC0415 as above

        from initd.api.types import TimeState  # noqa: PLC0415

        state = msgspec.convert(said, TimeState)
        offset, set_seconds = state["offset"], None
        if offset is not None and not EARLIEST <= time.time() + offset < LATEST:
            raise ValueError(f"found a time {offset:g} s from now, expected one of this century")
        if offset is not None:
            known, self.believed = self.believed, 0.0
            if known is not None and min(abs(offset), abs(offset - known)) > PANIC_SECONDS:
                reason = f"{state['server']}: {offset:+.0f} s from a clock that was right; the next answer must agree"
                state |= {"server": None, "offset": None, "reason": reason}
                self.believed, offset = offset, None
        before, self.clock = self.clock, state
        try:
            if offset is not None and abs(offset) > STEP_SECONDS:
                time.clock_settime(time.CLOCK_REALTIME, time.time() + offset)
                set_seconds, offset = round(offset, 3), 0.0
            if offset is not None:
                native.adjtime(offset)
        except OSError as error:
            log.error("clock not set", error=str(error))
        if set_seconds is not None or before is None or before["server"] != state["server"]:
            fields = {"server": state["server"], "reason": state["reason"], "set_seconds": set_seconds}
            log.info("time", **fields)
            self.events.emit("time", **fields)

    def _time(self) -> str:
        if self.network is None or not self.network["ntp"]:
            return "not asked"
        if self.clock is None or self.clock["server"] is None:
            return f"not synchronized: {self.clock['reason'] if self.clock else 'no answer yet'}"
        return f"synchronized from {self.clock['server']}"

    def identify(self, name: str, address: str | None) -> None:
        """Take name and address for this boot: into the kernel, hosts, hostname."""
        self.name, self.address = name, address
        try:
            native.sethostname(name)
        except OSError as error:
            log.error("node name not set", error=str(error))
        self._write_etc("hostname", f"{name}\n")
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        self._write_etc("hosts", "\n".join([*lines, f"{address or '127.0.1.1'} {name}", ""]))
        self.events.emit("identity", name=name, address=address)

    def _write_etc(self, name: str, text: str) -> None:
        """Write a file of /etc; if /run has no room for it now, as soon as it has, with what is wanted by then."""
        self._etc[name] = text

        async def write() -> None:
            write_etc(name, self._etc[name])

        try:
            write_etc(name, text)
        except OSError as error:
            log.error(f"/etc/{name} not written", error=str(error))
            self.spawn_task(write, f"/etc/{name}")


def exec_time() -> float:
    """When PID 1 was executed, in seconds since boot: native/entry.c records it before the interpreter starts."""
    try:
        return float(os.environ["INITD_EXEC_AT"])
    except (KeyError, ValueError):
        return boottime()  # started by another interpreter, as unit tests are


def write_etc(name: str, text: str) -> None:
    """Replace a file that /etc links to, at once: a reader sees the old text or the new. Raises OSError."""
    path = f"{mounts.ETC}/{name}"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


def write_first_etc() -> None:
    """The files of /etc that must be there before anything is known. Raises OSError."""
    write_etc("machine-id", f"{machine_id()}\n")
    write_etc("hostname", "localhost\n")
    write_etc("hosts", "127.0.0.1 localhost\n::1 localhost\n")
    write_etc("resolv.conf", "")
