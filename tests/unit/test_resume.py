"""The checkpoint: what one life of PID 1 writes, the next one reads, or refuses."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from initd import boot, cgroups, native, phases, resume, services
from initd.config.sources import Found
from initd.node import Node
from initd.supervise import process
from initd.supervise import service as supervised
from initd.supervise.process import Process
from initd.supervise.states import State
from tests.unit.core_support import World, states

if TYPE_CHECKING:
    from pathlib import Path

    from initd.phases import Phase

RUNTIME = services.CONTAINERD._replace(notify=False)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the checkpoint goes."""
    monkeypatch.setattr(resume, "PATH", str(tmp_path / "checkpoint"))
    monkeypatch.setattr(services, "SERVICES", (RUNTIME,))
    monkeypatch.setattr(native, "keep", lambda _descriptors, _rescue: None)
    for variable in ("INITD_PIPES", "INITD_LISTENER"):
        monkeypatch.setenv(variable, "")
    return str(tmp_path / "checkpoint")


def lived(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Node]:
    """A node on a kernel made for tests."""
    world, node = World(monkeypatch), Node()
    node.reaper, node.boot_id = world.reaper, "1234"
    node.found, node.name = Found("QEMU fw_cfg", "[node]\n"), "node-7"
    return world, node


def test_the_next_life_is_as_the_last(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    resume.save(node, os.memfd_create("report"))

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
    assert os.listdir(os.path.dirname(path)) == ["checkpoint"]


@pytest.mark.parametrize("found", [True, False])
def test_a_process_is_taken_again_or_missed(path: str, monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    del path
    _, node = lived(monkeypatch)
    service = node.add_service(RUNTIME)
    service.start("boot")
    resume.save(node, os.memfd_create("report"))
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
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("checkpoint")
        patch.setattr(resume, "PATH", str(folder / "checkpoint"))
        patch.setattr(native, "keep", lambda _descriptors, _rescue: None)
        for variable in ("INITD_PIPES", "INITD_LISTENER"):
            patch.setenv(variable, "")
        resume.save(Node(), 0)
        return (folder / "checkpoint").read_bytes()


@settings(deadline=None)  # the disk's time, not the code's
@given(st.data())
def test_one_that_is_damaged_is_refused(whole: bytes, tmp_path_factory: Any, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    damaged = whole[:at] + (b"" if cut else bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="not a whole checkpoint of this version"):
        resume.load(str(file))
    file.write_bytes(whole)
    assert resume.load(str(file))["node"]["phase"] == "booting"


def test_what_cannot_be_written_costs_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "PATH", f"{path}/not/there")
    resume.save(Node(), 0)


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
@pytest.mark.parametrize("until", [phase.name for phase in boot.PHASES[6:16]])
def test_a_fault_between_any_two_phases_starts_nothing_twice(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, until: str, after: bool
) -> None:
    link = '[[network.interfaces]]\nname = "eth0"\naddresses = ["192.0.2.10/24"]\n'
    text = f'[node]\nname = "n"\naddress = "192.0.2.10"\n{link}'
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
    report = os.memfd_create("report")
    node.on_change = lambda: resume.save(node, report)
    with contextlib.suppress(Fault):
        early(node, until, after=after)
    assert os.path.exists(path)

    again = Node()
    again.reaper, again.failures = world.reaper, ["SIGSEGV"]
    again.on_change = lambda: resume.save(again, report)
    state = resume.restore(again)
    early(again, "nothing", after=False)
    monkeypatch.setattr(resume, "find", lambda pid, *_: Process(pid, os.open("/dev/null", os.O_RDONLY), 0))
    resume.adopt(again, state)
    running = sorted(spec.argv[0] if spec.argv else "worker" for spec in kernel.alive.values())
    assert [name for name in running if name != "worker"] == ["/usr/bin/containerd", "/usr/bin/kubelet"]
    assert {name: worker.state for name, worker in again.workers.items()} == dict.fromkeys(
        services.WORKERS, State.STARTING
    )
    assert set(again.services) == {"containerd", "kubelet"}
    assert again.faults == {}
    assert again.listener is not None
    os.close(again.listener)
    for worker in (*node.workers.values(), *again.workers.values()):
        worker.ended()
