"""The checkpoint: what one life of PID 1 writes, the next one reads, or refuses."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd import boot, cgroups, init, native, phases, resume, services
from initd.config.sources import Found
from initd.node import Node
from initd.supervise import process
from initd.supervise import service as supervised
from initd.supervise.process import Process
from initd.supervise.states import State
from tests.unit.cluster_support import kubeconfig
from tests.unit.core_support import World, states

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from initd.phases import Phase

RUNTIME = services.CONTAINERD._replace(notify=False)


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the checkpoint goes."""
    monkeypatch.setattr(services, "SERVICES", (RUNTIME,))
    yield from memfd(monkeypatch)


def memfd(patch: pytest.MonkeyPatch) -> Iterator[int]:
    patch.setattr(native, "keep", lambda _descriptors, _rescue: None)
    for variable in ("INITD_PIPES", "INITD_LISTENER"):
        patch.setenv(variable, "")
    descriptor = os.memfd_create("checkpoint")
    patch.setenv(resume.CHECKPOINT, str(descriptor))
    yield descriptor
    os.close(descriptor)


def lived(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Node]:
    """A node on a kernel made for tests."""
    world, node = World(monkeypatch), Node()
    node.reaper, node.boot_id = world.reaper, "1234"
    node.found, node.name = Found("QEMU fw_cfg", "[node]\n"), "node-7"
    return world, node


def test_the_next_life_is_as_the_last(checkpoint: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world, node = lived(monkeypatch)
    monkeypatch.setattr(supervised, "start_time", lambda pid: 1000 + pid)
    service = node.add_service(RUNTIME)
    service.start("boot")
    world.end(service)
    world.clock.now += 5
    service.restart("asked for")
    node.add_worker("devices")
    node.faults["images"] = "none there"
    for number in range(300):
        node.events.emit("device", number=number)
    resume.save(node, 0, checkpoint)

    _, again = lived(monkeypatch)
    del again.found, again.name
    again.failures = ["SIGSEGV"]
    state = resume.restore(again)
    assert (again.boot_id, again.name, again.found, again.faults) == (node.boot_id, "node-7", node.found, node.faults)
    resumed = again.services["containerd"]
    assert {name: getattr(resumed, name) for name in resume.SERVICE} == {
        name: getattr(service, name) for name in resume.SERVICE
    }
    assert (resumed.state, states(resumed)) == (State.STARTING, states(service))
    assert (resumed.output.reader, resumed.backoff.failures) == (service.output.reader, service.backoff.failures)
    assert set(again.workers) == {"devices"}
    *kept, event = again.events.since(0)
    assert [entry["seq"] for entry in kept] == [entry["seq"] for entry in node.events.since(0)][-resume.EVENTS :]
    assert (event["kind"], event["seq"], again.failures) == ("resumed", kept[-1]["seq"] + 1, ["SIGSEGV"])
    assert service.process is not None
    pid = service.process.pid
    assert state["services"]["containerd"]["process"] == (pid, 1000 + pid)


def test_a_reboot_that_waits_for_its_turn_goes_on_waiting(checkpoint: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, node = lived(monkeypatch)
    node.turn = {"by": "the test", "waits_for": "slot-0 is held by node-2"}
    node.cluster = {"server": "https://x", "joined": True, "ready": True, "cordoned": False, "reason": None}
    resume.save(node, 0, checkpoint)
    _, again = lived(monkeypatch)
    again.failures = ["SIGSEGV"]
    state = resume.restore(again)
    assert (again.turn, again.cluster) == (node.turn, node.cluster)
    began: list[str] = []
    monkeypatch.setattr(again, "spawn_task", lambda _work, name: began.append(name))
    resume.adopt(again, state)
    assert began == ["turn"]


@pytest.mark.parametrize("found", [True, False])
def test_a_process_is_taken_again_or_missed(checkpoint: int, monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    _, node = lived(monkeypatch)
    service = node.add_service(RUNTIME)
    service.start("boot")
    resume.save(node, 0, checkpoint)
    world, again = lived(monkeypatch)
    again.failures = ["SIGSEGV"]
    state = resume.restore(again)

    def find(pid: int, cgroup: str, started: int | None) -> Process:
        assert (pid, cgroup, started) == (*state["services"]["containerd"]["process"][:1], "runtime", 0)
        if not found:
            raise LookupError("is another process by now")
        return Process(pid, os.open("/dev/null", os.O_RDONLY), 0)

    monkeypatch.setattr(resume, "find", find)
    monkeypatch.setattr(cgroups, "populated", lambda _path: True)
    resume.adopt(again, state)
    resumed = again.services["containerd"]
    if found:
        assert resumed.process is not None
        assert (resumed.state, world.kernel.killed_cgroups) == (State.STARTING, [])
    else:
        assert (resumed.state, world.kernel.killed_cgroups) == (State.BACKOFF, ["runtime"])
        assert resumed.last_exit == "ended when PID 1 was resumed"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A checkpoint."""
    with pytest.MonkeyPatch.context() as patch, contextlib.contextmanager(memfd)(patch) as descriptor:
        resume.save(Node(), 0, descriptor)
        return os.pread(descriptor, 1 << 20, 0)


@given(st.data())
def test_one_that_is_damaged_is_refused(whole: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    damaged = whole[:at] + (b"" if cut else bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    descriptor = os.memfd_create("checkpoint")
    try:
        os.write(descriptor, damaged)
        with pytest.raises(ValueError, match="not a whole checkpoint of this version"):
            resume.load(descriptor)
        os.pwrite(descriptor, whole + b"the end of a longer one", 0)
        assert resume.load(descriptor)["node"]["phase"] == "booting"
    finally:
        os.close(descriptor)


def test_what_cannot_be_written_leaves_the_last_one_and_what_is_kept(
    checkpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[int]] = []

    def fail(*_arguments: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    _, node = lived(monkeypatch)
    resume.save(node, 0, checkpoint)
    monkeypatch.setattr(os, "posix_fallocate", fail)
    monkeypatch.setattr(native, "keep", lambda descriptors, _rescue: kept.append(descriptors))
    node.phase, node.listener = "stopping", 99
    resume.save(node, 7, checkpoint)
    assert resume.load(checkpoint)["node"]["phase"] == "booting"
    assert kept == [[7, checkpoint, 99]]


def test_a_process_is_known_by_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "processes", lambda _path: [os.getpid()])
    own = process.start_time(os.getpid())
    found = process.find(os.getpid(), "runtime", own)
    os.close(found.pidfd)
    for pid, started, reason in (
        (os.getpid(), own + 1, "is another process by now"),
        (os.getppid(), None, "is outside of its cgroup"),
        (2**22 + 1, None, "is no process"),
        (2**70, None, "is no process"),
    ):
        with pytest.raises(LookupError, match=reason):
            process.find(pid, "runtime", started)
    assert process.start_time(2**22 + 1) == 0


class Fault(BaseException):
    """What ends a life."""


def test_a_failure_that_cannot_be_told_begins_another_life_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise MemoryError

    def reboot(_command: native.RebootCommand) -> None:
        raise Fault

    told: list[str] = []
    monkeypatch.setattr("traceback.format_exception", fail)
    monkeypatch.setattr(native, "restart", told.append)
    monkeypatch.setattr(native, "reboot", reboot)
    monkeypatch.setattr(init, "REBOOT_AFTER", 0.0)
    with pytest.raises(Fault):
        init._last_resort(OSError(5, "Input/output error"))
    assert told == ["OSError"]


def early(node: Node, until: str, *, after: bool) -> None:
    """Run the phases that need no loop; PID 1 fails before the one named `until`, or `after` it, unnoted."""

    def fail(phase: Phase) -> Any:
        def run(node: Node) -> Any:
            if after:
                phase.run(node)
            raise Fault

        return run

    harmless = {"mounts", "cgroups", "modules", "source", "var", "guard", "sysctl", "filesystems"}
    made = [phase._replace(run=lambda _node: None) if phase.name in harmless else phase for phase in boot.PHASES]
    faulty = [phase._replace(run=fail(phase)) if phase.name == until else phase for phase in made]
    sequence = phases.Sequence(node, tuple(faulty))
    sequence.early()
    for rest in sequence._pending.values():
        if rest is not None:
            rest.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("until", [phase.name for phase in boot.PHASES[6:18]])
def test_a_fault_between_any_two_phases_starts_nothing_twice(
    checkpoint: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, until: str, after: bool
) -> None:
    link = '[[network.interfaces]]\nname = "eth0"\naddresses = ["192.0.2.10/24"]\n'
    cluster = f"[cluster]\nbootstrap_kubeconfig = '{kubeconfig()}'\n"
    text = f'[node]\nname = "n"\naddress = "192.0.2.10"\n{link}{cluster}'
    monkeypatch.setattr(services, "SERVICES", (RUNTIME, services.KUBELET._replace(notify=False)))
    for name in ("CONTAINERD", "KUBELET"):
        monkeypatch.setattr(services, name, getattr(services, name)._replace(notify=False))
    monkeypatch.setattr(boot, "API_SOCKET", str(tmp_path / "api.sock"))
    monkeypatch.setattr(boot, "_write", lambda _path, _data: None)
    monkeypatch.setattr(boot, "_load", lambda _names: None)
    monkeypatch.setattr(native, "sethostname", lambda _name: None)
    world, node = lived(monkeypatch)
    kernel = world.kernel
    node.found, node.name, node.boot_phases = Found("QEMU fw_cfg", text), None, []
    node.on_change = lambda: resume.save(node, 0, checkpoint)
    with contextlib.suppress(Fault):
        early(node, until, after=after)
    assert os.fstat(checkpoint).st_size

    again = Node()
    again.reaper, again.failures = world.reaper, ["SIGSEGV"]
    again.on_change = lambda: resume.save(again, 0, checkpoint)
    state = resume.restore(again)
    early(again, "nothing", after=False)
    monkeypatch.setattr(resume, "find", lambda pid, *_: Process(pid, os.open("/dev/null", os.O_RDONLY), 0))
    resume.adopt(again, state)
    running = sorted(spec.argv[0] if spec.argv else "worker" for spec in kernel.alive.values())
    assert [name for name in running if name != "worker"] == ["/usr/bin/containerd", "/usr/bin/kubelet"]
    assert {name: worker.state for name, worker in again.workers.items()} == dict.fromkeys(
        services.WORKERS, State.STARTING
    )
    assert {worker.history[-1]["state"] for worker in again.workers.values()} == {"starting"}, "the history tells it"
    assert set(again.services) == {"containerd", "kubelet"}
    assert again.faults == {}
    assert again.listener is not None
    os.close(again.listener)
    for worker in (*node.workers.values(), *again.workers.values()):
        worker.ended()
