"""The order of the end, and that nothing holds it up."""

from __future__ import annotations

import asyncio
import errno
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import cgroups, log, native, shutdown, turns
from initd.api.protocol import ApiError, Code
from initd.node import Node
from initd.supervise.states import State
from initd.supervise.workers import WorkerGoneError

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


def test_a_node_of_a_cluster_is_drained_while_its_kubelet_lives(machine: Machine) -> None:
    Cluster(machine)
    did = machine.run(reboot)
    assert did[:4] == ["drain 59 in 61.0", "stop kubelet", "not_ready reboot of the node in 5.0", "kill kubepods"]
    (told, drained) = [event for event in machine.node.events.since(0) if event["kind"] in {"shutdown", "drain"}]
    assert cast("Any", told)["deadline_seconds"] == 90
    assert cast("Any", drained)["evicted"] == 2


@pytest.mark.parametrize("failure", [ApiError(Code.PERMISSION_DENIED, "may not: 403"), KeyError("left")])
def test_a_drain_that_fails_is_said_and_the_rest_follows(machine: Machine, failure: Exception) -> None:
    def fail(_what: object) -> None:
        raise failure

    Cluster(machine).answers = {"drain": fail, "not_ready": fail}
    assert machine.run(reboot)[-3:] == ["sync", "_unmount_all", "RESTART"]


def test_a_node_that_never_joined_is_not_drained(machine: Machine) -> None:
    Cluster(machine)
    assert machine.node.cluster is not None
    machine.node.cluster["joined"] = False
    assert machine.run(reboot)[0] == "stop kubelet"


def test_force_ends_a_drain_and_leaves_time_for_the_rest(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "FORCED", 5.0)
    cluster = Cluster(machine)
    del cluster.answers["drain"]

    async def whole() -> None:
        machine.node.loop = asyncio.get_running_loop()
        reboot(machine.node)
        async with asyncio.timeout(10):
            await cluster.asked.wait()
            shutdown.request(machine.node, "reboot", by="the test", force=True)
            await machine.off.wait()

    asyncio.run(whole())
    assert machine.did[1:3] == ["stop kubelet", "not_ready reboot of the node in 1.2"]
    assert "_unmount_all" in machine.did


# Turns.


def coordinated(machine: Machine, *requests: Callable[[Node], object]) -> list[object]:
    """Ask for a coordinated reboot, then make the requests; what the first gave, and then the reasons to wait."""
    given: list[object] = []

    async def whole() -> None:
        machine.node.loop = asyncio.get_running_loop()
        given.append(await turns.coordinate(machine.node, by="the test"))
        for request in requests:
            await asyncio.sleep(0)
            request(machine.node)
        async with asyncio.timeout(10):
            await machine.off.wait()

    asyncio.run(whole())
    told = [cast("Any", event) for event in machine.node.events.since(0) if event["kind"] == "turn"]
    return given + [event["waits_for"] for event in told]


def test_a_worker_that_dies_in_a_drain_has_a_successor_who_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "WORKER_SECONDS", 0.0)
    ends = [True, True, False]

    def drain(_seconds: float) -> dict[str, Any]:
        if ends.pop(0):
            raise WorkerGoneError(Code.UNAVAILABLE, "worker cluster: killed by SIGKILL")
        return {"evicted": 2, "left": []}

    Cluster(machine).answers["drain"] = drain
    did = machine.run(reboot)
    assert [each.split()[0] for each in did[:4]] == ["drain", "drain", "drain", "stop"]
    assert [event for event in machine.node.events.since(0) if event["kind"] == "drain"]


def test_pods_of_a_dead_kubelet_are_not_waited_for(machine: Machine) -> None:
    Cluster(machine)
    machine.services["kubelet"].state = State.CRASH_LOOP
    assert "drain" not in " ".join(machine.run(reboot))


def test_a_turn_that_is_free_is_taken_at_once(machine: Machine) -> None:
    Cluster(machine).answers["take_turn"] = lambda count: [] if count == 2 else ["?"]
    assert coordinated(machine) == [90.0]
    assert machine.did[-1] == "RESTART"


def test_a_turn_is_waited_for_whatever_happens(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: Code) -> Any:
        raise ApiError(code, "away")

    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    answers: list[Callable[[], Any]] = [
        lambda: ["0 is held by node-2", "1 is held by node-3"],
        lambda: ["0 is held by node-2", "1 is held by node-3"],
        lambda: fail(Code.UNAVAILABLE),
        lambda: fail(Code.PERMISSION_DENIED),
        lambda: dict[str, Any]()["what?"],
        list,
    ]
    Cluster(machine).answers["take_turn"] = lambda _count: answers.pop(0)()
    seen: list[Any] = []
    found = coordinated(machine, lambda node: seen.append((node.turn, node.status()["turn"], node.phase)))
    assert found == [None, "0 is held by node-2, 1 is held by node-3", "away"]
    ((turn, shown, phase),) = seen
    assert turn == shown
    assert (turn["by"], turn["waits_for"] in found, phase) == ("the test", True, "booting"), "the node goes on"
    assert machine.did[-1] == "RESTART"
    assert machine.node.turn is None


def test_a_turn_is_waited_for_though_who_asked_has_gone(machine: Machine) -> None:
    cluster, answer = Cluster(machine), asyncio.Event()

    async def slow(_count: int) -> list[str]:
        await answer.wait()
        return []

    async def whole() -> None:
        machine.node.loop = asyncio.get_running_loop()
        asked = asyncio.ensure_future(turns.coordinate(machine.node, by="the test"))
        await cluster.asked.wait()
        asked.cancel()
        answer.set()
        async with asyncio.timeout(10):
            await machine.off.wait()

    cluster.answers["take_turn"] = slow
    asyncio.run(whole())
    assert machine.did[-1] == "RESTART"


@pytest.mark.parametrize("held", [[], ["0 is held by node-2"]])
def test_a_reboot_that_is_called_off_leaves_no_lease(machine: Machine, held: list[str]) -> None:
    cluster, given = Cluster(machine), list[int]()

    def take(_count: int) -> list[str]:
        assert turns.call_off(machine.node)
        return held

    cluster.answers |= {"take_turn": take, "give_turn_back": given.append}
    assert not turns.call_off(machine.node)
    with pytest.raises(ApiError, match="called off"):
        coordinated(machine)
    assert given == [2]
    assert machine.node.shutdown is None


def test_a_reboot_that_waited_when_the_machine_is_switched_off_leaves_no_lease(machine: Machine) -> None:
    cluster, given = Cluster(machine), list[int]()
    cluster.answers |= {"take_turn": lambda _count: ["0 is held by node-2"], "give_turn_back": given.append}
    coordinated(machine, lambda node: shutdown.request(node, "shutdown", by="the test"))
    assert given == [2]
    assert machine.node.turn is None


def test_a_second_request_waits_with_the_first_and_one_without_a_turn_does_not(machine: Machine) -> None:
    Cluster(machine).answers["take_turn"] = lambda _count: ["0 is held by node-2"]
    second: list[float | None] = []

    async def ask_again(node: Node) -> None:
        second.append(await turns.coordinate(node, by="another"))
        reboot(node)

    found = coordinated(machine, lambda node: node.spawn_task(ask_again(node), "again"))
    assert (found, second) == ([None, "0 is held by node-2"], [None])
    assert machine.node.shutdown is not None
    assert (machine.node.shutdown.by, machine.node.turn) == ("the test", None)


def test_who_may_take_no_turn_is_told_at_once(machine: Machine) -> None:
    def fail(_count: int) -> None:
        raise ApiError(Code.PERMISSION_DENIED, "may not hold Leases for a reboot: 403")

    with pytest.raises(ApiError, match="this node joins no cluster"):
        coordinated(machine)
    Cluster(machine).answers["take_turn"] = fail
    with pytest.raises(ApiError, match="may not hold Leases"):
        coordinated(machine)
    assert (machine.node.turn, machine.node.shutdown) == (None, None)


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
