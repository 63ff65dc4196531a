"""A worker's link to PID 1: side by side, in whole frames, and over when PID 1 is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest
import structlog

from initd import worker
from initd.api.protocol import ApiError, Decoder, Message, Notification, ProtocolError, Request, Response, encode
from tests.unit.api_support import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Parent:
    """PID 1's end."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self._decoder = Decoder()
        self._messages: list[Message] = []

    def send(self, *messages: Message) -> None:
        self.end.sendall(b"".join(map(encode, messages)))

    async def read(self) -> Message:
        while not self._messages:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.end, 1 << 16), DEADLINE)
            assert data
            self._messages += self._decoder.feed(data)
        return self._messages.pop(0)


def link(
    test: Callable[[worker.Link, Parent], Awaitable[None]], rest: Callable[[], worker.Rest | None] = lambda: None
) -> None:
    """Run a test with a link that serves; the link has to end when the parent's end is closed."""

    async def run() -> None:
        theirs, ours = socket.socketpair()
        connection = worker.Link(theirs.detach())
        serving = asyncio.create_task(connection.serve(rest))
        with ours:
            await test(connection, Parent(ours))
        await asyncio.wait_for(serving, DEADLINE)

    asyncio.run(run())


def test_requests_are_answered_side_by_side() -> None:
    async def test(connection: worker.Link, parent: Parent) -> None:
        gate = asyncio.Event()

        async def slow(text: str) -> str:
            await gate.wait()
            return text

        async def open_gate() -> bool:
            gate.set()
            return True

        connection.handle("slow", slow)
        connection.handle("open", open_gate)
        parent.send(Request(1, "slow", ["first"]), Request(2, "open", []))
        assert await parent.read() == Response(2, None, True)
        assert await parent.read() == Response(1, None, "first")

    link(test)


def test_faults_are_answered_and_the_next_call_works() -> None:
    async def test(connection: worker.Link, parent: Parent) -> None:
        async def divide(by: int) -> float:
            return 1 / by

        connection.handle("divide", divide)
        parent.send(
            Request(1, "divide", [0]), Request(2, "divide", []), Request(3, "no.such", []), Request(4, "divide", [2])
        )
        codes = {}
        for _ in range(4):
            message = await parent.read()
            assert isinstance(message, Response)
            codes[message.msgid] = message.error and ApiError.from_wire(message.error).code
        assert codes == {1: "INTERNAL", 2: "INTERNAL", 3: "UNIMPLEMENTED", 4: None}

    with structlog.testing.capture_logs() as records:
        link(test)
    assert [record["event"] for record in records] == ["call failed", "call failed"]


def test_notifications_go_both_ways() -> None:
    async def test(connection: worker.Link, parent: Parent) -> None:
        async def told(text: str) -> None:
            await connection.notify("heard", text)

        connection.handle("tell", told)
        parent.send(Notification("tell", ["news"]))
        assert await parent.read() == Notification("heard", ["news"])

    link(test)


def test_large_frames_from_many_tasks_are_not_mixed_even_when_their_senders_are_cancelled() -> None:
    async def test(connection: worker.Link, parent: Parent) -> None:
        text = "x" * 300_000
        notices = [asyncio.create_task(connection.notify("big", number, text)) for number in range(4)]
        await asyncio.sleep(0)
        notices[0].cancel()
        got = [await parent.read() for _ in range(4)]
        assert got == [Notification("big", [number, text]) for number in range(4)]
        await asyncio.gather(*notices, return_exceptions=True)

    link(test)


def test_calls_that_run_end_with_the_link() -> None:
    ended = []

    async def test(connection: worker.Link, parent: Parent) -> None:
        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        connection.handle("wait", wait)
        parent.send(Request(1, "wait", []))
        await until(lambda: connection._running)

    link(test)
    assert ended


def test_nonsense_from_pid_1_ends_the_worker() -> None:
    async def test(_connection: worker.Link, parent: Parent) -> None:
        parent.end.sendall(b"\xc1")
        assert await asyncio.get_running_loop().sock_recv(parent.end, 1) == b""

    with pytest.raises(ProtocolError):
        link(test)


@pytest.fixture
def own_log() -> Iterator[None]:
    """Leave structlog and logging as they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


@pytest.mark.usefixtures("own_log")
def test_the_log_is_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    worker.configure_log()
    structlog.get_logger().info("lease", address="10.0.2.15", raw=b"\xff")
    logging.getLogger("library").warning("odd\nline")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("asyncio").exception("boom")
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(record["event"], record["level"]) for record in records] == [
        ("lease", "info"),
        ("odd\nline", "warning"),
        ("boom", "error"),
    ]
    assert "ZeroDivisionError" in records[2]["exception"]


@pytest.mark.usefixtures("own_log")
def test_an_unknown_worker_is_no_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main("../../etc") == 1
    assert "../../etc" in capsys.readouterr().err


def test_a_quiet_worker_offers_to_end_and_one_with_a_call_under_way_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(worker, "ANSWER_SECONDS", 0.0)
    reading, writing = os.pipe()
    terms: list[worker.Rest | None] = [None, worker.Rest(12.5, [reading])]
    asked = 0

    def rest() -> worker.Rest | None:
        nonlocal asked
        asked += 1
        return terms.pop(0) if terms else None

    async def test(connection: worker.Link, parent: Parent) -> None:
        gate = asyncio.Event()
        connection.handle("wait", gate.wait)
        parent.send(Request(1, "wait", []))
        for _ in range(3):  # rounds of the worker's own
            await asyncio.sleep(worker.QUIET_SECONDS)
        assert asked == 0
        gate.set()
        assert await parent.read() == Response(1, None, True)
        await until(lambda: asked >= 2)
        assert await parent.read() == Notification("idle", [1, 12.5, [reading]])

    link(test, rest)
    os.close(reading)
    os.close(writing)


def test_the_link_answers_a_ping_which_does_not_keep_a_worker_from_resting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(worker, "ANSWER_SECONDS", 0.0)

    async def test(connection: worker.Link, parent: Parent) -> None:
        connection._busy = False  # for a while
        resting = asyncio.ensure_future(until(lambda: offered))
        msgid = 0
        while not resting.done():
            parent.send(Request(msgid := msgid + 1, "ping", []))
            while (message := await parent.read()) != Response(msgid, None, True):
                assert isinstance(message, Notification)
        await resting

    offered: list[worker.Rest] = []

    def rest() -> worker.Rest:
        offered.append(worker.Rest(None, []))
        return offered[0]

    link(test, rest)
