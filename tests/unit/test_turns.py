"""Reboots that wait for other nodes of the cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import shutdown, turns
from initd.api.protocol import ApiError, Code
from initd.node import Node
from tests.unit.shutdown_support import Cluster, Machine, reboot

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


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
