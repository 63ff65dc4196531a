"""The time as packets: what initd asks, that nothing which arrives can hurt it, and when it asks whom."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.network import sntp
from initd.network.packet import RefusedError
from initd.network.sntp import Clock, KissError, RateError, judge, request
from tests.namespace.sntp_server import answer
from tests.unit.api_support import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from initd.api.types import TimeState

NOW = 1_800_000_000.0  # 2027
NONCE = b"\x80\x01\x02\x03\x04\x05\x06\x07"
ASKED = request(NONCE)


def test_a_question_tells_its_nonce_and_nothing_else() -> None:
    assert bytes((0b00_100_011,)) + bytes(39) + NONCE == ASKED


@pytest.mark.parametrize("ahead", [0.0, 0.25, -3600.0, 26 * 365 * 86400.0])
def test_the_offset_is_the_servers_clock_less_ours_whatever_the_way_takes(ahead: float) -> None:
    reply = answer(ASKED, NOW + ahead + 0.1, departed=0.3)
    assert judge(reply, NONCE, NOW, NOW + 0.5) == pytest.approx(ahead, abs=1e-5)


@pytest.mark.parametrize("now", [2_085_978_495.0, 2_085_978_497.0, 2_300_000_000.0, 4_000_000_000.0])
def test_2036_is_followed_by_2037(now: float) -> None:
    """32 bits of seconds since 1900 end on 7 February 2036; a clock that begins in 1970 is set all the same."""
    assert judge(answer(ASKED, now), NONCE, 0.0, 0.1) == pytest.approx(now - 0.05, abs=1e-5)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (answer(ASKED, NOW)[:47], "47 bytes"),
        (b"", "0 bytes"),
        (answer(ASKED, NOW, origin=b"\0" * 8), "another question"),
        (answer(ASKED, NOW, flags=4 << 3 | 3), "another question"),
        (ASKED, "another question"),
        (answer(ASKED, NOW, flags=3 << 6 | 4 << 3 | 4), "does not know"),
        (answer(ASKED, NOW, stratum=16), "does not know"),
        (answer(ASKED, NOW, stratum=0, code=b"INIT"), "does not know"),  # ntpd and others that have just started
        (answer(ASKED, NOW, stratum=0, code=b"STEP"), "does not know"),
        (answer(ASKED, NOW, stratum=0, flags=3 << 6 | 4 << 3 | 4, code=b""), "does not know"),  # chrony
        (answer(ASKED, NOW, delay=40.0), "does not know"),
        (answer(ASKED, NOW)[:40] + bytes(8), "does not know"),  # when it left
        (answer(ASKED, NOW, departed=1.0), "under way"),
        (answer(ASKED, NOW, departed=-1.5), "under way"),
    ],
)
def test_what_is_no_answer_is_refused_by_its_reason(reply: bytes, problem: str) -> None:
    with pytest.raises(RefusedError, match=problem):
        judge(reply, NONCE, NOW, NOW + 0.01)


@pytest.mark.parametrize(("code", "kind"), [("DENY", KissError), ("RSTR", KissError), ("RATE", RateError)])
def test_a_kiss_of_death_has_its_code(code: str, kind: type[KissError]) -> None:
    with pytest.raises(KissError, match=f"kiss-o'-death '{code}'") as caught:
        judge(answer(ASKED, NOW, stratum=0, code=code.encode()), NONCE, NOW, NOW + 0.01)
    assert type(caught.value) is kind
    with pytest.raises(RefusedError, match="another question"):  # anybody could send that
        judge(answer(ASKED, NOW, stratum=0, code=code.encode(), origin=b"\1" * 8), NONCE, NOW, NOW + 0.01)


def test_no_other_answer_is_a_kiss_of_death() -> None:
    with pytest.raises(RefusedError) as caught:
        judge(answer(ASKED, NOW, stratum=0, code=b"INIT"), NONCE, NOW, NOW + 0.01)
    assert not isinstance(caught.value, KissError)


@given(st.binary(max_size=80), st.booleans(), st.floats(0, 1e10), st.floats(0, 10))
def test_hostile_answers_are_refused_or_give_a_number(data: bytes, asked: bool, sent: float, way: float) -> None:
    reply = data[:24] + NONCE + data[32:] if asked else data
    try:
        assert math.isfinite(judge(reply, NONCE, sent, sent + way))
    except RefusedError as error:
        assert str(error).isprintable()  # noqa: PT017 - both ways are right


class Scene:
    """A clock, and what its servers say: an offset, or what is raised; an error for ever after the last."""

    def __init__(self, patch: pytest.MonkeyPatch, **said: Iterable[float | Exception]) -> None:
        self.said = {server: list(outcomes) for server, outcomes in said.items()}
        self.now = 1000.0
        self.asked: list[str] = []
        self.told: list[TimeState] = []
        self.clock = Clock()
        patch.setattr(sntp, "ask", self.ask)
        patch.setattr(sntp, "boottime", lambda: self.now)

    async def ask(self, server: str) -> float:
        self.asked.append(server)
        outcome = self.said[server].pop(0) if self.said[server] else OSError("gone")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def tell(self, state: TimeState) -> None:
        self.told.append(state)
        self.now = state["due"]

    def run(self, act: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            task = asyncio.create_task(self.clock.run(self.tell))
            await act()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(whole())

    async def rounds(self, count: int) -> None:
        await until(lambda: len(self.told) >= count)


def test_without_servers_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)

    async def act() -> None:
        scene.clock.use([])
        await asyncio.sleep(0)
        assert scene.clock.due is None

    scene.run(act)
    assert scene.told == []


def test_the_first_that_answers_is_believed_and_asked_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, a=[RefusedError("no answer")] * 9, b=[0.25] * 9)

    async def act() -> None:
        scene.clock.use(["a", "b"])
        await scene.rounds(6)

    scene.run(act)
    assert scene.asked[:4] == ["a", "b"] * 2
    first = scene.told[0]
    assert (first["server"], first["offset"], first["reason"]) == ("b", 0.25, None)
    assert [state["wait"] for state in scene.told[:6]] == [256, 512, 1024, 2048, 3600, 3600]


def test_when_none_answers_each_reason_is_told_and_the_rounds_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, a=[RefusedError("no answer")] * 12 + [1.0], b=[])

    async def act() -> None:
        scene.clock.use(["a", "b"])
        await scene.rounds(14)

    scene.run(act)
    assert scene.told[0]["reason"] == "a: no answer; b: gone"
    waits = [state["wait"] for state in scene.told[:14]]
    assert waits[:11] == [2**n for n in range(11)]
    assert waits[11:] == [1024, 256, 1], "a success and a failure each begin anew"


def test_who_sends_a_kiss_of_death_is_asked_no_more_until_the_servers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, a=[KissError("kiss-o'-death 'DENY'"), 0.5], b=[RefusedError("no answer")] * 2)

    async def act() -> None:
        scene.clock.use(["a", "b"])
        await scene.rounds(2)
        assert scene.asked[:3] == ["a", "b", "b"]
        assert scene.told[1]["denied"] == ["a"]
        scene.clock.use(["a"])
        await until(lambda: any(state["server"] == "a" for state in scene.told))

    scene.run(act)


def test_who_wants_to_be_asked_more_rarely_is_asked_after_the_longest_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, a=[RateError("kiss-o'-death 'RATE'")] * 2 + [0.1], b=[RefusedError("no answer"), 0.1])

    async def act() -> None:
        scene.clock.use(["a", "b"])
        await scene.rounds(3)

    scene.run(act)
    assert [(state["server"], state["wait"]) for state in scene.told[:3]] == [(None, 1024), ("b", 3600), ("a", 3600)]
    assert scene.told[0]["denied"] == []


def test_one_from_whom_the_clock_is_far_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, a=[0.1, 0.1, -7200.0, 0.1, 0.1])

    async def act() -> None:
        scene.clock.use(["a"])
        await scene.rounds(5)

    scene.run(act)
    assert [state["wait"] for state in scene.told[:5]] == [256, 512, 256, 512, 1024]


def test_a_later_process_goes_on_where_the_last_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, a=[0.0])

    async def act() -> None:
        scene.clock.state = {
            "server": "a", "offset": 0.0, "reason": None, "due": 5000.0, "wait": 512.0, "denied": [],
        }  # fmt: skip
        scene.clock.use(["a"])
        for _ in range(3):
            await asyncio.sleep(0)
        assert (scene.asked, scene.clock.due) == ([], 5000.0)
        scene.now = 5000.0
        scene.clock._changed.set()
        await scene.rounds(1)
        assert scene.told[0]["wait"] == 1024

    scene.run(act)
