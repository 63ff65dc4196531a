"""The order of the end, and that nothing holds it up."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import cgroups, log, native, shutdown
from initd.node import Node
from initd.supervise.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def reboot(node: Node) -> float:
    return shutdown.request(node, "reboot", by="the test")


def test_everything_ends_in_order(machine: Machine) -> None:
    assert machine.run(lambda node: shutdown.request(node, "shutdown", by="the test")) == [
        "stop kubelet",
        "kill kubepods",
        "kill shims",
        "stop network",
        "stop containerd",
        "sync",
        "_unmount_all",
        "POWER_OFF",
    ]
    assert machine.node.phase == "stopping"
    told = [event for event in machine.node.events.since(0) if event["kind"] == "shutdown"]
    assert cast("Any", told[0])["deadline_seconds"] == shutdown.DEADLINE


def test_a_service_that_does_not_stop_is_killed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "DEADLINE", 0.5)
    machine.services["kubelet"].stubborn = True
    did = machine.run(reboot)
    assert did[:3] == ["stop kubelet", "kill kubelet", "kill kubepods"]
    assert did[-1] == "RESTART"


@pytest.mark.parametrize("step", range(len(shutdown.STEPS)))
def test_a_step_that_fails_skips_no_other(machine: Machine, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_node: Node, _shutdown: shutdown.Shutdown) -> None:
        raise OSError(5, "Input/output error")

    steps: list[Any] = list(shutdown.STEPS)
    steps[step] = fail
    monkeypatch.setattr(shutdown, "STEPS", steps)
    did = machine.run(reboot)
    assert did[-1] == "RESTART"
    assert len(did) >= 5


def test_a_step_that_never_ends_does_not_keep_the_machine_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_node: Node, _shutdown: shutdown.Shutdown) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(shutdown, "STEPS", (hang,))
    monkeypatch.setattr(shutdown, "DEADLINE", 0.05)
    assert machine.run(reboot) == ["RESTART"]


def test_a_second_request_only_makes_it_faster(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_node: Node, _shutdown: shutdown.Shutdown) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(shutdown, "STEPS", (hang,))
    monkeypatch.setattr(shutdown, "FORCED", 0.05)
    seconds: list[float] = []

    def hurry(node: Node) -> None:
        seconds.append(shutdown.request(node, "reboot", by="the test", force=True))
        seconds.append(shutdown.request(node, "shutdown", by="another"))

    assert machine.run(reboot, hurry) == ["RESTART"], "what was asked for first is done"
    assert max(seconds) <= 0.05


def test_a_forced_one_decides_what_it_is(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "FORCED", 0.05)
    did = machine.run(reboot, lambda node: shutdown.request(node, "shutdown", by="another", force=True))
    assert did[-1] == "POWER_OFF"
    assert machine.node.shutdown is not None
    assert machine.node.shutdown.by == "another"


def test_the_end_comes_even_if_telling_of_it_fails(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_phase: object) -> None:
        raise KeyError("reasons")

    monkeypatch.setattr(machine.node, "enter", fail)

    def ask(node: Node) -> None:
        with pytest.raises(KeyError):
            reboot(node)

    assert machine.run(ask)[-1] == "RESTART"


def test_a_reboot_that_is_refused_is_tried_again(machine: Machine) -> None:
    machine.refused = 1
    assert machine.run(lambda node: shutdown.request(node, "shutdown", by="the test"))[-2:] == ["POWER_OFF", "RESTART"]


def test_a_pid_that_has_become_another_s_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {7: "0::/kubepods/burstable/pod1", 8: "0::/kubepods2", 9: "0::/kubepods"}
    opened: dict[int, int] = {}
    sent: list[int] = []

    def pidfd_open(pid: int) -> int:
        descriptor = os.open("/dev/null", os.O_RDONLY)
        opened[descriptor] = pid
        return descriptor

    monkeypatch.setattr(shutdown, "read", lambda path: where[int(path.split("/")[2])])
    monkeypatch.setattr(native, "pidfd_open", pidfd_open)
    monkeypatch.setattr(native, "pidfd_send_signal", lambda descriptor, _number: sent.append(opened[descriptor]))
    shutdown._signal([*where], "kubepods")
    assert sent == [7, 7, 9, 9], "SIGTERM and SIGCONT"
    sent.clear()
    shutdown._signal([*where])
    assert set(sent) == set(where), "at the end nobody is spared"


def test_a_fork_that_is_refused_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [OSError(errno.EAGAIN, "fork"), OSError(errno.ENOMEM, "fork")]
    fork = os.fork

    def refused() -> int:
        if refusals:
            raise refusals.pop()
        return fork()

    monkeypatch.setattr(os, "fork", refused)
    source, sink = os.pipe()
    asyncio.run(shutdown._in_child(lambda: cast("None", os.write(sink, b"done")), 10.0))
    os.close(sink)
    with open(source, "rb") as stream:
        assert stream.read() == b"done"
    os.wait()


def test_what_never_ends_in_the_child_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, **_: warned.append(text))
    source, sink = os.pipe()  # to be read until this test has closed it

    def read() -> None:
        os.close(sink)
        os.read(source, 1)

    asyncio.run(shutdown._in_child(read, 0.05))
    assert warned == ["file systems not synced or unmounted in time"]
    os.close(sink)
    os.close(source)
    os.wait()


def test_mounts_are_taken_down_from_the_deepest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        targets = {line.split()[4] for line in file} - shutdown.KEPT_MOUNTS

    def umount(target: str, flags: native.UmountFlag) -> None:
        asked.append((target, bool(flags & native.UmountFlag.DETACH)))
        if not flags & native.UmountFlag.DETACH:
            raise OSError(16, "umount: Device or resource busy", target)

    monkeypatch.setattr(native, "umount", umount)
    monkeypatch.setattr(os, "sync", lambda: asked.append(("sync", True)))
    shutdown._unmount_all()
    assert asked.pop() == ("sync", True)
    assert [lazy for _, lazy in asked] == [False, True] * (len(asked) // 2)
    order = [target for target, lazy in asked if lazy]
    assert {target for target in order if "\\" not in target} >= {target for target in targets if "\\" not in target}
    for index, target in enumerate(order):
        assert not any(later.startswith(f"{target}/") for later in order[index + 1 :])
