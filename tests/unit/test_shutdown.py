"""The order of the end, and that nothing holds it up."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any, cast

import pytest

from initd import log, native, shutdown
from initd.api.protocol import ApiError, Code
from initd.node import Node
from initd.supervise.states import State
from initd.supervise.workers import WorkerGoneError
from tests.unit.shutdown_support import Cluster, Machine, reboot


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


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
