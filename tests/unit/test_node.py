"""What the node says of itself, and what follows from what its parts tell it."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import boot, log, modules, mounts, native, services
from initd.config.schema import Config
from initd.node import Node, write_first_etc
from initd.services import ServiceSpec
from initd.supervise import backoff
from initd.supervise.states import State
from tests.unit.core_support import World

if TYPE_CHECKING:
    from pathlib import Path

    from initd.supervise.service import Service
    from initd.supervise.states import Event


class FakeService:
    """What the node looks at of a service, and what it does to it."""

    def __init__(self, name: str, state: State = State.RUNNING, *, healthy: bool = True) -> None:
        self.spec = type("Spec", (), {"name": name})
        self.state = state
        self.healthy = healthy
        self.missing: str | None = None
        self.process = "process"
        self.output = type("Output", (), {"end": lambda _self: None})()
        self.argv: tuple[str, ...] = ()
        self.done: list[str] = []

    def needs(self) -> str | None:
        return self.missing

    def handle(self, event: Event, _reason: str) -> None:
        self.done.append(event.name)

    def restart(self, reason: str) -> None:
        self.done.append(reason)


def network(**changes: Any) -> Any:
    return {
        "ready": True, "reasons": [], "hostname": None, "address": "192.0.2.7", "dns": ["192.0.2.53"],
        "ntp": [], "lease": None, **changes,
    }  # fmt: skip


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mounts, "ETC", str(tmp_path))
    monkeypatch.setattr(native, "sethostname", (tmp_path / "kernel").write_text)
    return tmp_path


def add(node: Node, *services: FakeService) -> None:
    node.services |= {service.spec.name: cast("Service", service) for service in services}  # type: ignore[attr-defined]


def kinds(node: Node) -> list[str]:
    return [event["kind"] for event in node.events.since(0)]


def test_ready_only_when_everything_is(etc: Path) -> None:
    assert etc.is_dir()
    node = Node()
    kubelet = FakeService("kubelet", State.STARTING)
    add(node, FakeService("containerd"), kubelet)
    assert node.status()["reasons"] == ["phase is booting", "network: not configured yet", "kubelet: starting"]
    node.enter("running")
    node.network_changed(network(ready=False, reasons=["eth0: no carrier"], address=None))
    assert node.status()["reasons"] == ["network: eth0: no carrier", "kubelet: starting"]
    node.network_changed(network())
    kubelet.state, kubelet.healthy = State.RUNNING, False
    assert node.reasons() == ["kubelet: not healthy yet"]
    kubelet.healthy = True
    node.update()
    node.update()
    told: list[Any] = [event for event in node.events.since(0) if event["kind"] == "node"]
    assert [event["ready"] for event in told][-1]
    assert sum(event["ready"] for event in told) == 1, "only changes are told"


def test_a_phase_s_failure_is_no_reason_once_it_works(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert etc.is_dir()
    imported: list[int] = []
    told: dict[str, Any] = {}

    async def import_images(_node: Node) -> None:
        imported.append(1)
        if len(imported) == 1:
            raise OSError("containerd ended again")

    async def whole() -> None:
        node = Node()
        node.loop = asyncio.get_running_loop()
        containerd = cast("Service", FakeService("containerd"))
        node.faults |= dict.fromkeys(("config", "images", "devices", "network"), "failed")
        for _ in range(2):
            node.service_changed(containerd)
            node.service_changed(containerd)  # which does not begin a second import
            await asyncio.gather(*node.tasks)
            await asyncio.sleep(0)
        node.service_changed(containerd)
        assert len(imported) == 2
        node.network_changed(network(ready=False))
        assert node.faults.keys() == {"config", "devices", "network"}
        node.network_changed(network())
        node.workers["devices"] = cast("Any", type("Worker", (), {"on": staticmethod(told.__setitem__)}))
        listening = asyncio.ensure_future(boot.settle_devices(node))
        await asyncio.sleep(0)
        told["settled"]({})
        await listening
        assert node.faults == {"config": "failed"}, "what nobody does again stays"
        reasons: Any = node.events.since(0)[-1]
        assert [reason for reason in reasons["reasons"] if "failed" in reason] == ["config: failed"]

    monkeypatch.setattr(boot, "import_images", import_images)
    monkeypatch.setattr(modules, "make_static_nodes", lambda: None)
    asyncio.run(whole())


def test_stopping_is_the_last_phase() -> None:
    node = Node()
    node.enter("stopping")
    node.enter("maintenance")
    assert node.phase == "stopping"


@pytest.mark.parametrize("kind", ["service", "worker"])
def test_the_last_line_of_a_process_does_not_run_into_its_successor_s(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    world, node = World(monkeypatch), Node()
    node.reaper = world.reaper
    monkeypatch.setattr(services, "worker", lambda _name: ServiceSpec("x", ("/x",), {}, "x"))
    service: Service = node.add_worker("x") if kind == "worker" else node.add_service(services.worker("x"))
    for words in (b"panic: unfi", b"nished"):
        service.start()
        os.write(service.output.writer, words)
        service.restart()
        os.write(service.output.writer, b"...")
        world.end(service)
    service.stop()
    world.end(service)
    os.close(service.output.reader)
    os.close(service.output.writer)
    assert [line["text"] for line in service.output.tail(9)] == ["panic: unfi...", "nished..."]


def test_what_waits_for_a_service_goes_on_when_it_is_ready() -> None:
    node = Node()
    containerd, kubelet = FakeService("containerd", State.STARTING), FakeService("kubelet", State.BLOCKED)
    kubelet.missing = "containerd"
    add(node, containerd, kubelet)
    node.service_changed(cast("Service", containerd))
    assert kubelet.done == []
    containerd.state, kubelet.missing = State.RUNNING, None
    node.service_changed(cast("Service", containerd))
    assert kubelet.done == ["UNBLOCKED"]


def test_the_files_follow_name_address_and_name_servers(etc: Path) -> None:
    write_first_etc()
    assert (etc / "resolv.conf").read_text() == ""
    node = Node()
    node.network_changed(network(dns=["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3"]))
    assert (etc / "resolv.conf").read_text().count("nameserver") == 3  # resolv.conf(5): no more are read
    node.identify("node-1", "192.0.2.7")
    assert (etc / "hostname").read_text() == "node-1\n"
    assert "192.0.2.7 node-1" in (etc / "hosts").read_text().splitlines()
    assert (etc / "kernel").read_text() == "node-1"
    assert not list(etc.glob("*.new"))


def test_an_address_that_comes_late_reaches_the_kubelet_once(etc: Path) -> None:
    assert etc.is_dir()
    node = Node()
    node.config = Config()
    kubelet = FakeService("kubelet")
    add(node, kubelet)
    node.identify("node-1", None)
    node.network_changed(network(address=None))
    assert kubelet.done == []
    node.network_changed(network())
    node.network_changed(network(address="192.0.2.8"))
    assert kubelet.done == ["the node has the address 192.0.2.7 now"]
    assert "--node-ip=192.0.2.7" in kubelet.argv
    assert node.address == "192.0.2.7", "chosen once and kept for this boot"
    assert kinds(node).count("identity") == 2


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"ready": True}, "missing required field"),
        (["ready"], "Expected `object`"),
        (network(ready=1), "Expected `bool`"),
        (network(dns="192.0.2.53"), "Expected `array`"),
        (network(lease="10.0.2.15"), "Expected `object"),
        (network(address="192.0.2.7 extra"), "expected one word"),
        (network(hostname=""), "expected one word"),
        (network(dns=["192.0.2.53\noptions rotate"]), "expected one word"),
    ],
)
def test_a_bad_view_of_the_network_does_not_replace_a_good_one(etc: Path, said: Any, wrong: str) -> None:
    node = Node()
    node.network_changed(network())
    with pytest.raises(ValueError, match=wrong):
        node.network_changed(said)
    assert node.network == network()
    assert (etc / "resolv.conf").read_text() == "nameserver 192.0.2.53\n"


def heard(**changes: object) -> dict[str, Any]:
    """What the network worker says of the time."""
    good = {"server": "192.0.2.123", "offset": 0.1, "reason": None, "due": 99.0, "wait": 256.0, "denied": []}
    return {**good, **changes}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What is done to the clock, which says 1 January 2001."""
    done: list[tuple[str, float]] = []
    monkeypatch.setattr(time, "time", lambda: 978_307_200.0)
    monkeypatch.setattr(time, "clock_settime", lambda _clock, seconds: done.append(("set", seconds)))
    monkeypatch.setattr(native, "adjtime", lambda seconds: done.append(("adjust", seconds)))
    return done


@pytest.mark.usefixtures("etc")
def test_a_clock_that_is_far_off_is_set_and_one_that_is_not_runs_faster(
    clock: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, years = Node(), 820_000_000.0
    assert node.status()["time"] == "not asked"
    node.network_changed(network(ntp=["192.0.2.123"]))
    assert node.status()["time"] == "not synchronized: no answer yet"
    node.time_changed(heard(server=None, offset=None, reason="192.0.2.123: no answer for 2 s"))
    assert node.status()["time"] == "not synchronized: 192.0.2.123: no answer for 2 s"
    node.time_changed(heard(offset=years))
    assert node.status()["time"] == "synchronized from 192.0.2.123"
    monkeypatch.setattr(time, "time", lambda: 978_307_200.0 + years)
    node.time_changed(heard(offset=-0.4))
    assert clock == [("set", 978_307_200.0 + years), ("adjust", 0.0), ("adjust", -0.4)], "each tells the kernel of it"
    told: list[Any] = [event for event in node.events.since(0) if event["kind"] == "time"]
    assert [(event["server"], event["set_seconds"]) for event in told] == [(None, None), ("192.0.2.123", years)]
    node.network_changed(network(ntp=[]))
    assert node.status()["time"] == "not asked"


RIGHT = 978_307_200.0 + 820_000_000.0


def test_a_clock_that_was_right_is_set_far_away_only_by_two_answers_that_agree(
    clock: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    node.network_changed(network(ntp=["192.0.2.123"]))
    monkeypatch.setattr(time, "time", lambda: RIGHT)
    node.time_changed(heard(offset=0.0))
    clock.clear()
    node.time_changed(heard(offset=86400.0))
    assert node.status()["time"].startswith("not synchronized: 192.0.2.123: +86400 s from a clock that was right")
    node.time_changed(heard(offset=-86400.0))
    node.time_changed(heard(server=None, offset=None, reason="no answer"))
    assert clock == []
    node.time_changed(heard(offset=0.25))
    node.time_changed(heard(offset=7200.0))
    assert clock == [("adjust", 0.25)], "the one that was right is believed at once"
    node.time_changed(heard(server=None, offset=None, reason="no answer"))
    node.time_changed(heard(offset=7200.5))
    assert clock == [("adjust", 0.25), ("set", RIGHT + 7200.5), ("adjust", 0.0)]
    assert node.status()["time"] == "synchronized from 192.0.2.123"


@pytest.mark.parametrize(
    "said",
    [
        heard(offset=float("nan")),
        heard(offset=float("inf")),
        heard(offset=0.0),  # which makes 2001 of it
        heard(offset=1e10),
        heard(offset="1"),
        heard(due=None),
        {"server": "192.0.2.123"},
        [],
    ],
)
def test_no_time_at_all_changes_no_clock(clock: list[tuple[str, float]], said: Any) -> None:
    node = Node()
    with pytest.raises(ValueError, match=r"expected|Expected|missing"):
        node.time_changed(said)
    assert (clock, node.clock, node.believed) == ([], None, None)


def test_a_clock_that_cannot_be_set_is_no_fault(clock: list[tuple[str, float]], monkeypatch: Any) -> None:
    def refuse(_clock: int, _seconds: float) -> None:
        raise PermissionError

    monkeypatch.setattr(time, "clock_settime", refuse)
    node = Node()
    node.time_changed(heard(offset=820_000_000.0))
    (told,) = node.events.since(0)
    assert (told.get("set_seconds"), clock) == (None, [])


def test_etc_that_cannot_be_written_is_written_when_it_can_be(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "ETC", str(etc / "full"))
    monkeypatch.setattr(backoff, "FIRST", 0.001)

    async def whole() -> None:
        node = Node()
        node.loop = asyncio.get_running_loop()
        node.network_changed(network())
        node.identify("node-1", "192.0.2.7")
        await asyncio.sleep(0)
        node.network_changed(network(dns=["192.0.2.99"]))
        (etc / "full").mkdir()
        async with asyncio.timeout(5):
            await asyncio.gather(*node.tasks)

    asyncio.run(whole())
    assert (etc / "full/resolv.conf").read_text() == "nameserver 192.0.2.99\n"
    assert (etc / "full/hostname").read_text() == "node-1\n"
    assert "192.0.2.7 node-1" in (etc / "full/hosts").read_text()


def test_a_task_that_can_be_made_again_is_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(backoff, "FIRST", 0.001)
    monkeypatch.setattr(log, "exception", lambda _event, failure, **_fields: told.append(str(failure)))

    async def whole() -> None:
        node = Node()
        node.loop = asyncio.get_running_loop()
        faults = ["one", "one", "other"]

        async def work() -> None:
            if faults:
                raise OSError(faults.pop(0))

        node.spawn_task(work, "line")
        async with asyncio.timeout(5):
            await asyncio.gather(*node.tasks)
        assert faults == []

    asyncio.run(whole())
    assert told == ["one", "other"], "the same again and again would fill the log"


def test_a_task_that_fails_ends_alone() -> None:
    async def whole() -> None:
        node = Node()
        node.loop = asyncio.get_running_loop()
        ran = asyncio.Event()

        async def fail() -> None:
            raise RuntimeError("a fault")

        async def work() -> None:
            ran.set()

        node.spawn_task(fail(), "fails")
        node.spawn_task(work(), "works")
        async with asyncio.timeout(5):
            await ran.wait()
            while node.tasks:
                await asyncio.gather(*node.tasks)

    asyncio.run(whole())
