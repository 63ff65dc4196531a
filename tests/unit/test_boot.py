"""The phase runner with phases made for tests, and rules of the real list."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import boot, watchdog
from initd.boot import PHASES
from initd.config.schema import parse
from initd.events import EventLog
from initd.node import Node
from initd.phases import Phase, Sequence, Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from initd.api.types import BootPhase, NetworkState


def run(*phases: Phase, node: Node | None = None) -> tuple[Node, dict[str, BootPhase]]:
    """Walk the phases as PID 1 does; returns the node and each phase's outcome, in the order in which they came."""
    node = node or Node()
    sequence = Sequence(node, phases)
    sequence.early()
    asyncio.run(sequence.finish())
    assert len(node.boot_phases) == len(phases), "a phase is noted once"
    return node, {phase["name"]: phase for phase in node.boot_phases}


def passes(_node: Node) -> None:
    pass


def fails(_node: Node) -> None:
    raise OSError(5, "Input/output error", "/x")


def skips(_node: Node) -> None:
    raise Skipped("nothing to do")


def later(*steps: Callable[[], Any]) -> Callable[[Node], Coroutine[Any, Any, None]]:
    """A phase that goes on in the loop, one step a turn."""

    async def rest(_node: Node) -> None:
        for step in steps:
            await asyncio.sleep(0)
            step()

    return rest


def raising(failure: Exception) -> Callable[[], None]:
    def step() -> None:
        raise failure

    return step


def test_phases_run_in_order_and_then_the_node_runs() -> None:
    ran: list[str] = []
    node, phases = run(
        Phase("one", lambda _node: ran.append("one")),
        Phase("two", later(lambda: ran.append("two"))),
        Phase("three", lambda _node: ran.append("three")),
    )
    assert ran == ["one", "three", "two"]
    assert node.phase == "running"
    assert [phase["status"] for phase in phases.values()] == ["done"] * 3
    assert [(phase["name"], phase["index"]) for phase in phases.values()] == [("one", 1), ("three", 3), ("two", 2)]
    events = [event for event in node.events.since(0) if event["kind"] == "phase"]
    assert [cast("dict[str, Any]", event)["total"] for event in events] == [3, 3, 3]


def test_a_failure_is_noted_and_what_is_after_it_skipped_in_a_chain() -> None:
    node, phases = run(
        Phase("disk", fails),
        Phase("mount", passes, after=("disk",)),
        Phase("service", later(), after=("mount",)),
        Phase("other", passes),
    )
    assert {name: phase["status"] for name, phase in phases.items()} == {
        "disk": "failed",
        "mount": "skipped",
        "service": "skipped",
        "other": "done",
    }
    assert phases["service"]["error"] == "mount was not done"
    assert node.phase == "running"
    assert node.faults == {"disk": "[Errno 5] Input/output error: '/x'"}
    assert not node.status()["ready"]


@pytest.mark.parametrize("run_phase", [fails, later(raising(OSError(5, "Input/output error", "/x")))])
def test_a_fatal_failure_is_maintenance(run_phase: Any) -> None:
    node, phases = run(Phase("config", run_phase, fatal=True), Phase("api", later()))
    assert node.phase == "maintenance"
    assert phases["api"]["status"] == "done"
    assert "config: [Errno 5] Input/output error: '/x'" in node.status()["reasons"]


def test_a_phase_with_nothing_to_do_is_no_fault() -> None:
    node, phases = run(
        Phase("early", skips),
        Phase("late", later(raising(Skipped("not here")))),
        Phase("after", passes, after=("late",)),
    )
    assert {name: phase["status"] for name, phase in phases.items()} == dict.fromkeys(phases, "skipped")
    assert phases["late"]["error"] == "not here"
    assert node.faults == {}


def test_a_failure_in_the_loop_skips_what_waited_for_it() -> None:
    _, phases = run(
        Phase("lease", later(raising(TimeoutError()))),
        Phase("kubelet", passes, after=("lease",)),
    )
    assert (phases["lease"]["status"], phases["lease"]["error"]) == ("failed", "TimeoutError")
    assert phases["kubelet"]["status"] == "skipped"


def test_pending_phases_run_beside_each_other_and_tell_what_they_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    met = asyncio.Barrier(2)
    now = [0.0]

    async def meet(_node: Node) -> None:
        async with asyncio.timeout(5):
            await met.wait()  # ends only if both are there
        now[0] += 1

    monkeypatch.setattr("initd.phases.boottime", lambda: now[0])
    _, phases = run(
        Phase("network", meet),
        Phase("devices", meet),
        Phase("kubelet", passes, after=("network",)),
        Phase("images", later(), after=("kubelet",)),
        Phase("alone", later()),
    )
    assert [phase["waited_for"] for phase in phases.values() if phase["name"] == "kubelet"] == ["network"]
    assert phases["images"]["waited_for"] == "kubelet"
    assert phases["alone"]["waited_for"] is None
    assert {phase["status"] for phase in phases.values()} == {"done"}


@pytest.mark.parametrize("outcome", [None, Skipped("not here"), OSError("broken")])
def test_a_phase_behind_another_waits_for_it_whatever_becomes_of_it(outcome: Exception | None) -> None:
    ran: list[str] = []

    async def disk(_node: Node) -> None:
        await asyncio.sleep(0)
        ran.append("disk")
        if outcome:
            raise outcome

    _, phases = run(Phase("disk", disk), Phase("kubelet", lambda _node: ran.append("kubelet"), behind=("disk",)))
    assert ran == ["disk", "kubelet"]
    assert phases["kubelet"]["status"] == "done"


def test_nothing_begins_once_the_node_stops() -> None:
    node = Node()
    _, phases = run(
        Phase("lease", later(lambda: node.enter("stopping"))),
        Phase("kubelet", passes, after=("lease",)),
        node=node,
    )
    assert phases["kubelet"]["error"] == "the node is stopping"
    assert node.phase == "stopping"


def test_the_real_list_names_what_stands_above() -> None:
    seen: set[str] = set()
    for phase in PHASES:
        assert set(phase.after + phase.behind) <= seen
        assert phase.name not in seen
        seen.add(phase.name)
    names = [phase.name for phase in PHASES]
    assert names.index("containerd") < names.index("config") < names.index("kubelet")
    assert names.index("listen") < names.index("config"), "a node with a bad configuration can be asked why"
    assert {phase.name for phase in PHASES if phase.fatal} == {"mounts", "cgroups", "var", "config"}


@pytest.mark.parametrize("configured", [True, False], ids=["configuration", "lease"])
def test_the_boot_waits_for_the_time_only_where_it_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, *, configured: bool
) -> None:
    node = Node()
    node.config = parse("", "test")
    assert boot.wait_for_time(node) is None
    if configured:
        node.config = parse('[network]\nntp = ["192.0.2.123"]', "test")
    else:
        node.network = cast("NetworkState", {"ntp": ["192.0.2.123"]})

    async def whole() -> None:
        waiting = asyncio.ensure_future(boot.wait_for_time(node) or asyncio.sleep(0))
        for server in (None, "192.0.2.123"):
            await asyncio.sleep(0)
            assert not waiting.done()
            node.events.emit("time", server=server)
        await asyncio.wait_for(waiting, 5)
        node.events = EventLog()
        monkeypatch.setattr(boot, "TIME_SECONDS", 0.01)
        await asyncio.wait_for(boot.wait_for_time(node) or asyncio.sleep(9), 5)

    asyncio.run(whole())


@pytest.mark.parametrize("error", ["fw_cfg: node.name: expected text", None])
def test_without_a_configuration_there_is_maintenance(error: str | None) -> None:
    node = Node()
    node.config_error = error
    with pytest.raises(RuntimeError, match=error or "no source of configuration"):
        boot.judge_configuration(node)


@pytest.mark.parametrize("there", [True, False], ids=["slow devices", "devices that fail"])
def test_the_watchdog_does_not_depend_on_the_other_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, there: bool
) -> None:
    node, found = Node(), asyncio.Event()
    node.on_service_change = found.set

    async def devices(_node: Node) -> None:
        if there:
            async with asyncio.timeout(5):
                await found.wait()
        raise RuntimeError("not settled")

    def start(seconds: int) -> tuple[int, int]:
        if not there:
            raise FileNotFoundError
        return 9, seconds

    monkeypatch.setattr(watchdog, "DEVICE", str(tmp_path if there else tmp_path / "none"))
    monkeypatch.setattr(watchdog, "start", start)
    monkeypatch.setattr(watchdog, "last_boot", lambda: ("panic", "log"))
    monkeypatch.setattr(watchdog, "keep_log", lambda: None)
    monkeypatch.setattr(boot, "WATCHDOG_POLL", 0.001)
    real = next(phase for phase in PHASES if phase.name == "watchdog")
    _, phases = run(Phase("devices", devices), Phase("liveness", later()), real, node=node)
    assert phases["devices"]["error"] == "not settled"
    assert node.last_boot == {"cause": "panic", "log": "log"}
    assert (phases["watchdog"]["status"], node.watchdog) == (("done", (9, 60)) if there else ("skipped", None))
