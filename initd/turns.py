"""Coordinated reboots: the node waits, and works, until few enough others are down.

Whose turn it is, Leases in the API server say (initd/cluster/turn.py), which the cluster worker takes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from initd import log, shutdown
from initd.api.protocol import ApiError, Code

if TYPE_CHECKING:
    from initd.api.types import TurnInfo
    from initd.node import Node

TASK = "turn"
TURN_SECONDS = 10.0
ANSWER_SECONDS = 8.0  # for the API's caller, who waits no longer than 10
HELD = 1000  # characters of who has what is waited for


async def coordinate(node: Node, by: str) -> float | None:
    """Reboot when it is this node's turn to be down: at once, or, if that is None, later, beside the loop.

    Raises ApiError FAILED_PRECONDITION for a node without a cluster, PERMISSION_DENIED for one that may take no turn,
    ABORTED if it is called off meanwhile.
    """
    if "cluster" not in node.workers:
        raise ApiError(Code.FAILED_PRECONDITION, "this node joins no cluster: there is nobody to wait for")
    if node.turn is not None:
        return None
    first: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
    _set(node, {"by": by, "waits_for": "the API server's answer"})
    node.spawn_task(lambda: wait(node, first), TASK)  # goes on though the caller goes away: it may have a Lease then
    return await first


async def wait(node: Node, first: asyncio.Future[float | None] | None = None) -> None:
    """Ask for a turn until there is one, and reboot. `first` is told how the first asking went: with an ApiError, that
    was all.
    """
    try:
        while (turn := node.turn) is not None:
            asked = first is None or first.done()
            try:
                held = await _held(node, 3 * TURN_SECONDS if asked else ANSWER_SECONDS)
            except ApiError as error:
                if not asked:
                    _set(node, None)
                    _answer(first, error)
                    return
                held = error.message
            if node.turn is not turn:
                continue
            if not held:
                _answer(first, shutdown.request(node, "reboot", turn["by"]))
                return
            if held != turn["waits_for"]:
                turn = {**turn, "waits_for": held}
                _set(node, turn)
                log.info("a reboot waits for its turn", **turn)
                node.events.emit("turn", **turn)
            _answer(first, None)
            await asyncio.sleep(TURN_SECONDS)
        _answer(first, ApiError(Code.ABORTED, "called off"))
    except asyncio.CancelledError:  # called off, or a shutdown began that waits for nobody
        _answer(first, node.shutdown.left() if node.shutdown else ApiError(Code.ABORTED, "called off"))
        if node.shutdown is not None and node.shutdown.action != "reboot":
            node.spawn_task(_give_back(node), "Lease")
        raise


def call_off(node: Node) -> bool:
    """Have a reboot that waits for its turn wait no longer; whether there was one."""
    if node.turn is None:
        return False
    _set(node, None)
    node.end_task(TASK)
    node.spawn_task(_give_back(node), "Lease")  # it may have been taken just then
    return True


def _set(node: Node, turn: TurnInfo | None) -> None:
    node.turn = turn
    node.on_change()  # a next life of PID 1 has to know


def _answer(first: asyncio.Future[float | None] | None, answer: float | ApiError | None) -> None:
    if first is None or first.done():
        return
    if isinstance(answer, ApiError):
        first.set_exception(answer)
    else:
        first.set_result(answer)


async def _held(node: Node, seconds: float) -> str:
    """Take a turn; what it waits for, if there is none to be had. Raises ApiError PERMISSION_DENIED."""
    try:
        holders = await node.workers["cluster"].call("take_turn", _count(node), timeout=seconds)
    except ApiError as error:
        if error.code is Code.PERMISSION_DENIED:
            raise
        return error.message
    return ", ".join(holders)[:HELD]


async def _give_back(node: Node) -> None:
    try:
        await node.workers["cluster"].call("give_turn_back", _count(node))
    except ApiError as error:
        log.warning("a Lease is kept until the next reboot", reason=error.message)


def _count(node: Node) -> int:
    cluster = node.config.cluster if node.config is not None else None
    return cluster.max_unavailable if cluster is not None else 1
