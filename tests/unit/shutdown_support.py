"""A node that ends, and a cluster worker that it asks, without a process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from initd import cgroups, native, shutdown
from initd.node import Node
from initd.supervise.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from initd.native import RebootCommand
    from initd.supervise.service import Service


class FakeService:
    """A service or worker that ends when it is told to, or, if it is stubborn, when its cgroup is killed."""

    def __init__(self, name: str, did: list[str], *, stubborn: bool = False) -> None:
        self.spec = type("Spec", (), {"name": name, "cgroup": name})
        self.state = State.RUNNING
        self.healthy = True
        self.did = did
        self.stubborn = stubborn

    def retire(self, _reason: str) -> None:
        if self.state is not State.DOWN:
            self.did.append(f"stop {self.spec.name}")  # type: ignore[attr-defined]
            self.state = State.STOPPING if self.stubborn else State.DOWN


class Machine:
    """What a shutdown does to a node, as a list of words."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.node = Node()
        self.refused = 0
        self.off = asyncio.Event()
        self.services = {name: FakeService(name, self.did) for name in ("containerd", "kubelet")}
        self.node.services = cast("dict[str, Service]", dict(self.services))
        self.node.workers = cast("dict[str, Any]", {"network": FakeService("network", self.did)})
        patch.setattr(native, "reboot", self.reboot)
        patch.setattr(cgroups, "kill", self.kill)
        patch.setattr(cgroups, "processes", lambda _path: [])
        patch.setattr(cgroups, "populated", lambda _path: False)
        patch.setattr(shutdown, "POLL", 0.0)
        patch.setattr(shutdown, "_is_user_process", lambda _pid: False)
        patch.setattr(shutdown, "_in_child", self.in_child)

    def kill(self, path: str) -> None:
        self.did.append(f"kill {path}")
        if path in self.services:
            self.services[path].state = State.DOWN

    async def in_child(self, work: Callable[[], None], _seconds: float) -> None:
        self.did.append(work.__name__)

    def reboot(self, command: RebootCommand) -> None:
        self.did.append(command.name)
        if self.refused:
            self.refused -= 1
            raise OSError(1, "reboot: Operation not permitted")
        self.off.set()

    def run(self, *requests: Callable[[Node], object]) -> list[str]:
        """Make the requests in a loop and let it run until the machine is off."""

        async def whole() -> None:
            self.node.loop = asyncio.get_running_loop()
            for request in requests:
                request(self.node)
            async with asyncio.timeout(10):
                await self.off.wait()

        asyncio.run(whole())
        return self.did


def reboot(node: Node) -> float:
    return shutdown.request(node, "reboot", by="the test")


class Cluster(FakeService):
    """A cluster worker; `answers` gives, or raises, what each of its methods answers."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("cluster", machine.did)
        self.answers: dict[str, Callable[..., Any]] = {
            "drain": lambda _seconds: {"evicted": 2, "left": []},
            "not_ready": lambda _reason: None,
        }
        self.asked = asyncio.Event()
        machine.node.workers["cluster"] = cast("Any", self)
        machine.node.config = cast("Any", SimpleNamespace(
            node=SimpleNamespace(shutdown_seconds=30.0),
            cluster=SimpleNamespace(drain_seconds=60.0, max_unavailable=2),
        ))  # fmt: skip
        machine.node.cluster = {
            "server": "https://10.0.2.2", "joined": True, "ready": True, "cordoned": False, "reason": None
        }  # fmt: skip

    async def call(self, method: str, *params: object, timeout: float = 30.0) -> Any:
        (param,) = params
        self.did.append(f"{method} {param if isinstance(param, str) else round(cast('float', param))} in {timeout:.1f}")
        self.asked.set()
        if method not in self.answers:
            await asyncio.Event().wait()
        answer = self.answers[method](*params)
        return await answer if asyncio.iscoroutine(answer) else answer
