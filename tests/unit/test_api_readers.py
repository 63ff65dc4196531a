"""Clients of the API that read slowly, late or never: they lose, and nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from typing import TYPE_CHECKING

from initd.api import session
from initd.api.protocol import Notification, Request, Response, encode
from initd.api.registry import Call, Method, Role
from tests.unit.api_support import Running, serve, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def connect_without_reading(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(path)
    connection.setblocking(False)
    return connection


def test_a_slow_reader_of_a_stream_loses_items_is_told_how_many_and_slows_no_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STREAM_PATIENCE", 0.01)

    async def test(node: Running) -> None:
        connection = connect_without_reading(node.path)
        connection.send(encode(Request(1, "count", [2000, 1000])))
        line = (await node.session())._line
        await until(lambda: node.methods.ended)
        assert line.get_write_buffer_size() < 2 * session.HIGH_WATER
        assert (await (await node.connect()).call("echo", "quick")).result == "quick"
        slow = await node.connect(connection)
        received = dropped = 0
        while isinstance(message := await slow.read(), Notification):
            item = message.params[1]
            if isinstance(item, dict):
                dropped += item["dropped"]
            else:
                received += 1
        assert message == Response(1, None, None)
        assert dropped
        assert received + dropped == 2000

    serve(tmp_path, test)


def test_one_that_asks_for_all_it_may_and_never_reads_takes_no_memory_and_no_ones_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STREAM_PATIENCE", 0.0)

    async def test(node: Running) -> None:
        other = await node.connect()
        deaf = connect_without_reading(node.path)
        tracemalloc.start()
        deaf.send(b"".join(encode(Request(msgid, "count", [2000, 1000])) for msgid in range(session.MAX_CALLS)))
        answered = 0
        while node.methods.ended < session.MAX_CALLS:
            answered += (await other.call("echo", "quick")).result == "quick"
        assert answered > 3, "a call, which takes a few turns of the loop, gets them between bursts of the streams"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20, "of 128 MB that were asked for"
        deaf.close()

    try:
        serve(tmp_path, test)
    finally:
        tracemalloc.stop()


def test_a_reader_that_only_pauses_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        connection = connect_without_reading(node.path)
        connection.send(encode(Request(1, "count", [2000, 1000])))
        line = (await node.session())._line
        await until(lambda: line.get_write_buffer_size() > session.HIGH_WATER)
        reader = await node.connect(connection)
        numbers = []
        while isinstance(message := await reader.read(), Notification):
            item = message.params[1]
            assert isinstance(item, list)
            numbers.append(item[0])
        assert numbers == list(range(2000))

    serve(tmp_path, test)


def test_answers_that_have_nowhere_to_go_are_not_made(tmp_path: Path) -> None:
    made: list[int] = []

    async def fill(_call: Call, size: int) -> str:
        made.append(size)
        return "x" * size

    async def test(node: Running) -> None:
        node.api.methods = {**node.api.methods, "fill": Method("fill", Role.READER, fill)}
        other = await node.connect()
        connection = connect_without_reading(node.path)
        connection.send(b"".join(encode(Request(msgid, "fill", [175_000])) for msgid in range(session.MAX_CALLS)))
        await until(lambda: made)
        for _ in range(3):  # turns of the loop that the rest could take
            assert (await other.call("echo", "quick")).result == "quick"
        assert len(made) < 5
        late = await node.connect(connection)
        answers = [await late.response() for _ in range(session.MAX_CALLS)]
        assert sorted(answer.msgid for answer in answers) == list(range(session.MAX_CALLS))
        assert {len(str(answer.result)) for answer in answers} == {175_000}

    serve(tmp_path, test)


def test_a_response_that_is_not_taken_in_time_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WRITE_DEADLINE", 0.05)

    async def test(node: Running) -> None:
        connection = connect_without_reading(node.path)
        requests = [Request(0, "wait", []), *(Request(msgid, "echo", ["x" * 60000]) for msgid in range(1, 20))]
        with contextlib.suppress(BrokenPipeError):  # it may be over before all is sent
            await asyncio.get_running_loop().sock_sendall(connection, b"".join(map(encode, requests)))
        await until(lambda: node.methods.ended)
        await until(lambda: not node.api.sessions)
        connection.close()

    serve(tmp_path, test)


def test_a_stream_alone_may_wait_for_its_reader_as_long_as_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WRITE_DEADLINE", 0.01)
    monkeypatch.setattr(session, "STREAM_PATIENCE", 0.01)

    async def test(node: Running) -> None:
        connection = connect_without_reading(node.path)
        connection.send(encode(Request(1, "forever", [])))
        served = await node.session()
        await until(lambda: served._dropped.get(1, 0) > 1000)
        assert node.api.sessions
        connection.close()

    serve(tmp_path, test)
