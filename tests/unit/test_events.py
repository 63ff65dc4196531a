"""The event log: numbers, replay, followers."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd import events
from initd.events import EventLog, machine_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from initd.api.types import Event


@given(st.integers(0, 40), st.integers(-3, 45))
def test_replay_gives_what_is_kept_after_a_number_in_order(count: int, since: int) -> None:
    log = EventLog(kept=10)
    for number in range(count):
        log.emit("test", number=number)
    numbers = [event["seq"] for event in log.since(since)]
    assert numbers == list(range(max(since, count - 10, 0) + 1, count + 1))


def test_an_event_carries_both_clocks() -> None:
    event = EventLog().emit("node", ready=True)
    assert event["seq"] == 1
    assert event["kind"] == "node"
    assert event["monotonic"] == pytest.approx(events.boottime(), abs=5)


async def take(follower: AsyncGenerator[Event, None], count: int) -> list[int]:
    return [(await asyncio.wait_for(anext(follower), 5))["seq"] for _ in range(count)]


def test_a_follower_gets_the_past_then_each_new_one_and_sees_a_gap() -> None:
    async def follow() -> None:
        log = EventLog(kept=4)
        for _ in range(3):
            log.emit("test")
        follower = log.follow(1)
        assert await take(follower, 2) == [2, 3]
        waiting = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0)
        assert not waiting.done()
        log.emit("test")
        assert (await waiting)["seq"] == 4
        for _ in range(10):
            log.emit("test")
        assert await take(follower, 4) == [11, 12, 13, 14]
        await follower.aclose()
        assert not log._wakers

    asyncio.run(follow())


def test_what_is_new_costs_a_follower_no_look_at_what_is_old() -> None:
    looked = 0

    class Watched(dict[str, object]):
        def __getitem__(self, key: str) -> object:
            nonlocal looked
            looked += 1
            return super().__getitem__(key)

    async def follow() -> None:
        log = EventLog()
        for _ in range(1000):
            log.emit("test")
        log._ring = deque(map(Watched, log._ring))  # type: ignore[arg-type]
        follower = log.follow(1000)
        for number in range(1001, 1021):
            log.emit("test")
            assert await take(follower, 1) == [number]
        await follower.aclose()

    asyncio.run(follow())
    assert looked == 0


def test_a_follower_that_is_cancelled_leaves_nothing() -> None:
    async def follow() -> None:
        log = EventLog()

        async def client() -> None:
            async for _ in log.follow():
                pass

        task = asyncio.create_task(client())
        await asyncio.sleep(0)
        assert log._wakers
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not log._wakers

    asyncio.run(follow())


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("4C4C4544-0042-3510-8052-B4C04F4A3132\n", "4c4c4544004235108052b4c04f4a3132"),
        ("00000000-0000-0000-0000-000000000000\n", None),
        ("ffffffff-ffff-ffff-ffff-ffffffffffff\n", None),
        ("Not Settable\n", None),
        ("not-a-hexadecimal-number-but-as-long", None),
        (None, None),
    ],
)
def test_machine_id(text: str | None, used: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "product_uuid"
    if text is not None:
        source.write_text(text)
    monkeypatch.setattr(events, "PRODUCT_UUID", str(source))
    monkeypatch.setattr(events, "boot_id", lambda: "12345678-1234-1234-1234-123456789abc")
    assert machine_id() == used or (used is None and machine_id() == "12345678123412341234123456789abc")
