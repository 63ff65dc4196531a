"""A node for the client's tests: every method of the API with an answer of the right shape, served from a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, cast

from initd.api.protocol import ApiError, Code
from initd.api.registry import Call, Method, Role
from initd.api.session import Api
from initd.api.start import listen as serve_on
from tests.unit.api_support import as_role, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from initd.api import types

EVENTS: list[dict[str, Any]] = [
    {
        "seq": 1,
        "time": 1.0,
        "monotonic": 0.5,
        "kind": "phase",
        "name": "mounts",
        "index": 1,
        "total": 14,
        "status": "done",
        "milliseconds": 12.3,
        "waited_for": None,
        "error": None,
    },
    {
        "seq": 2,
        "time": 2.0,
        "monotonic": 1.5,
        "kind": "service",
        "name": "kubelet",
        "argv": ["/usr/bin/kubelet"],
        "state": "running",
        "reason": "ready",
    },
    {"seq": 3, "time": 3.0, "monotonic": 2.5, "kind": "node", "phase": "running", "ready": True, "reasons": []},
    {"seq": 4, "time": 4.0, "monotonic": 3.5, "kind": "device", "action": "add", "devname": "vda\x1b[2J"},
]
STATUS: types.NodeStatus = {
    "name": "node-1",
    "address": "10.0.2.15",
    "phase": "running",
    "ready": False,
    "reasons": ["kubelet: not healthy yet"],
    "boot_id": "b",
    "uptime_seconds": 34.0,
    "config_source": "fw_cfg",
    "identity": "persistent",
    "time": "synchronized from 192.0.2.123",
    "failures": [],
    "cluster": None,
    "turn": None,
    "shutdown": None,
}
SERVICES: list[types.ServiceStatus] = [
    {
        "name": "containerd",
        "argv": ["/usr/bin/containerd"],
        "state": "running",
        "desired": "running",
        "healthy": True,
        "pid": 90,
        "restarts": 0,
        "since": 1.0,
        "status_text": "",
        "last_exit": None,
        "next_start_seconds": None,
        "history": [],
        "last_lines": [],
    },
    {
        "name": "kubelet",
        "argv": ["/usr/bin/kubelet"],
        "state": "backoff",
        "desired": "running",
        "healthy": False,
        "pid": None,
        "restarts": 3,
        "since": 1.0,
        "status_text": "",
        "last_exit": "exit status 1",
        "next_start_seconds": 2.5,
        "history": [],
        "last_lines": ["bad flag \x1b]0;owned\x07"],
    },
]
PODS: list[types.PodInfo] = [
    {
        "namespace": "default",
        "name": "web",
        "uid": "u",
        "id": "i",
        "state": "ready",
        "address": "10.88.0.2",
        "created": 1.0,
        "containers": [
            {
                "name": "http",
                "id": "c",
                "image": "web:1",
                "state": "running",
                "restarts": 0,
                "created": 1.0,
                "started": 2.0,
                "exit_code": None,
                "reason": "",
            }
        ],
    },
    {
        "namespace": "default",
        "name": "empty",
        "uid": "u",
        "id": "i",
        "state": "notready",
        "address": None,
        "created": 1.0,
        "containers": [],
    },
]
ANSWERS: dict[str, Any] = {
    "reboot.cancel": True,
    "version": {"version": "0.1.0", "kernel": "6.12", "python": "3.13.5", "boot_id": "b", "image": None},
    "status": STATUS,
    "services": SERVICES,
    "pods": PODS,
    "mounts": [
        {
            "target": "/",
            "source": "/dev/vda1",
            "type": "erofs",
            "flags": ["ro", "nodev"],
            "options": [],
            "propagation": ["shared:1"],
        }
    ],
    "processes": [
        {
            "pid": 1,
            "parent": 0,
            "name": "init",
            "cgroup": "/initd/pid1",
            "state": "S",
            "resident_bytes": 20 << 20,
            "cpu_seconds": 1.25,
        }
    ],
    "links": [
        {
            "name": "eth0",
            "index": 2,
            "kind": "ether",
            "mac": "52:54:00:12:34:56",
            "mtu": 1500,
            "up": True,
            "carrier": True,
            "addresses": ["10.0.2.15/24"],
            "routes": ["default via 10.0.2.2"],
            "managed": True,
        }
    ],
    "images": [{"id": "sha256:0123456789abcdef", "names": ["pause:3.10"], "size_bytes": 700_000, "pinned": True}],
    "disks": [
        {
            "name": "vda1",
            "device": "/dev/vda1",
            "size_bytes": 1 << 30,
            "read_only": True,
            "removable": False,
            "partition_label": "initd-root-a",
            "type": "erofs",
            "label": None,
            "uuid": None,
            "parent": "vda",
        }
    ],
    "config": {"source": "fw_cfg", "text": '[node]\nname = "x"\n', "values": {}, "error": "node.nmae: unknown key"},
    "config.schema": {"type": "object"},
    "schema": {"version": {"role": "reader", "params": {"type": "array", "maxItems": 0}}},
    "boot.last": {"cause": "panic", "log": "Kernel panic - not syncing: sysrq\n"},
    "boot.times": {
        "exec": 2.0,
        "marks": {"kubelet exec": 0.4},
        "phases": [
            {
                "name": "mounts",
                "index": 1,
                "start": 0.0,
                "milliseconds": 100.0,
                "waited_for": None,
                "status": "done",
                "error": None,
            },
            {
                "name": "disks",
                "index": 2,
                "start": 0.0,
                "milliseconds": 10.0,
                "waited_for": None,
                "status": "skipped",
                "error": None,
            },
            {
                "name": "var",
                "index": 3,
                "start": 0.1,
                "milliseconds": 300.0,
                "waited_for": "mounts",
                "status": "done",
                "error": None,
            },
        ],
    },
}


class FakeNode:
    """What was asked of it, and where it is."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: list[tuple[object, ...]] = []
        self.stop: Callable[[], object] = lambda: None

    def table(self) -> dict[str, Method]:
        table = {name: Method(name, Role.READER, self._answer(name, answer)) for name, answer in ANSWERS.items()}

        async def restart(_call: Call, name: str) -> bool:
            self.calls.append(("service.restart", name))
            if name != "kubelet":
                raise ApiError(Code.NOT_FOUND, f"no service named {name!r}; there are containerd, kubelet")
            return True

        async def events(_call: Call, since: int = 0, follow: bool = True) -> AsyncIterator[dict[str, Any]]:
            self.calls.append(("events", since))
            for event in EVENTS[since:]:
                yield event
            if follow:
                await asyncio.Event().wait()

        async def logs(
            _call: Call, service: str, tail: int = 100, follow: bool = False
        ) -> AsyncIterator[types.LogLine]:
            self.calls.append(("logs", service, tail, follow))
            yield {"time": 1.5, "text": "started \x1b[31mred", "dropped": 2}

        async def kernel_log(_call: Call, follow: bool = False) -> AsyncIterator[types.KernelRecord]:
            self.calls.append(("kernel.log", follow))
            yield {"seq": 1, "monotonic": 0.1, "priority": 3, "facility": 0, "text": "oops"}

        async def mounts(_call: Call) -> AsyncIterator[Any]:
            for item in ANSWERS["mounts"]:
                yield item

        async def processes(_call: Call) -> AsyncIterator[Any]:
            for item in ANSWERS["processes"]:
                yield item

        async def never(_call: Call) -> None:
            await asyncio.Event().wait()

        table |= {
            "service.restart": Method("service.restart", Role.OPERATOR, restart),
            "events": Method("events", Role.READER, events),
            "logs": Method("logs", Role.READER, logs),
            "kernel.log": Method("kernel.log", Role.READER, kernel_log),
            "mounts": Method("mounts", Role.READER, mounts),
            "processes": Method("processes", Role.READER, processes),
            "never": Method("never", Role.READER, never),
            **self._ends(),
        }
        return table

    def _ends(self) -> dict[str, Method]:
        async def reboot(_call: Call, force: bool = False, coordinated: bool = False) -> float | None:
            self.calls.append(("reboot", force, coordinated))
            return None if coordinated else 30.0

        async def shutdown(_call: Call, force: bool = False) -> float:
            self.calls.append(("shutdown", force))
            return 90.0

        return {
            "reboot": Method("reboot", Role.ADMIN, reboot),
            "shutdown": Method("shutdown", Role.ADMIN, shutdown),
        }

    def _answer(self, name: str, answer: Any) -> Any:
        async def method(_call: Call) -> Any:
            self.calls.append((name,))
            return answer

        return method


@contextlib.contextmanager
def serving(folder: Path, role: Role = Role.ADMIN) -> Iterator[FakeNode]:
    """Serve a fake node from a thread."""
    node = FakeNode(str(folder / "api.sock"))
    listener = listen(node.path)
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        api = Api(cast("Any", None), node.table())
        server = await serve_on(api, listener, as_role(role))
        stop = asyncio.Event()
        node.stop = lambda: loop.call_soon_threadsafe(stop.set)
        started.set()
        await stop.wait()
        server.close()
        for session in api.sessions:
            session._line.abort()
        await asyncio.sleep(0)  # lets the connections notice

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    started.wait()
    try:
        yield node
    finally:
        with contextlib.suppress(RuntimeError):  # a test stopped it already
            node.stop()
        thread.join()
        loop.close()
