"""The API over a Unix socket: many calls, many clients, and none that harms another."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING

import pytest

from initd import boot
from initd.api import session, start
from initd.api.protocol import Notification, Request, Response, encode
from initd.api.registry import Peer, Role
from initd.node import Node
from tests.unit.api_support import Running, running, serve, until

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def error_code(response: Response | None) -> str:
    assert isinstance(response, Response)
    assert isinstance(response.error, list), response
    assert all(isinstance(part, str) for part in response.error[:2])
    return str(response.error[0])


def test_a_call_gets_its_result_and_its_msgid(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        assert await peer.call("echo", "hello", msgid=0xFFFFFFFF) == Response(0xFFFFFFFF, None, "hello")

    serve(tmp_path, test)


@pytest.mark.parametrize(
    ("method", "params", "code", "text"),
    [
        ("no.such", [], "UNIMPLEMENTED", "no.such"),
        ("echo", [], "INVALID_ARGUMENT", '"text" is missing'),
        ("echo", [5], "INVALID_ARGUMENT", "found int 5"),
        ("echo", ["a", "b"], "INVALID_ARGUMENT", "found 2 parameters"),
        ("count", [True], "INVALID_ARGUMENT", "found bool True"),
        ("change", [], "PERMISSION_DENIED", "wants the role operator"),
        ("fail", ["error"], "NOT_FOUND", "nothing here"),
        ("fail", ["exception"], "INTERNAL", "ZeroDivisionError"),
        ("fail", ["exit"], "INTERNAL", "SystemExit"),
        ("fail", ["set"], "INTERNAL", "TypeError"),
        ("fail", ["big"], "RESOURCE_EXHAUSTED", "ask for less"),
    ],
)
def test_an_error_is_an_array_that_says_why_and_the_connection_goes_on(
    tmp_path: Path, method: str, params: list[object], code: str, text: str
) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        response = await peer.call(method, *params)
        assert error_code(response) == code
        assert text in str(response.error)
        assert response.result is None
        assert (await peer.call("echo", "still here")).result == "still here"

    serve(tmp_path, test)


def test_what_a_method_raises_is_logged_and_who_changed_something_too(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        await peer.call("echo", "x")
        await peer.call("change")
        await peer.call("fail", "exception")
        (change, changed), (failed, fields) = node.log.records
        assert (change, changed) == ("api call", {"method": "change", "peer": "uid 1000 pid 1"})
        assert (failed, fields["method"]) == ("api call failed", "fail")
        assert isinstance(fields["failure"], ZeroDivisionError)

    serve(tmp_path, test, Role.ADMIN)


def test_a_peer_without_a_role_may_call_nothing(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        for method in ("echo", "no.such", "change"):
            assert error_code(await peer.call(method, "x")) == "PERMISSION_DENIED"

    serve(tmp_path, test, Role.NONE)


def test_streams_have_a_bound_of_which_one_user_may_take_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_STREAMS", 4)
    uids = iter([1000, 1000, 1001, 1002])

    async def run() -> None:
        async with running(tmp_path, lambda _: Peer(1, next(uids), 1000, Role.READER, "someone")) as node:
            first, second, other, last = [await node.connect() for _ in range(4)]
            for peer, msgid in ((first, 1), (second, 1), (other, 1), (other, 2)):
                peer.send(Request(msgid, "forever", []))
                await peer.read()
            for peer, why in ((first, "uid 1000 has 2 streams"), (last, "the node has 4 streams")):
                refused = await peer.call("forever", msgid=9)
                assert error_code(refused) == "RESOURCE_EXHAUSTED"
                assert why in str(refused.error)
            assert (await last.call("echo", "no stream")).result == "no stream"
            other.cancel(2)
            await until(lambda: node.methods.ended)
            last.send(Request(3, "count", [1]))
            assert (await last.response()).error is None
            second.writer.transport.abort()
            await until(lambda: node.methods.ended == 3)
            first.send(Request(3, "count", [1]))
            assert (await first.response()).error is None

    asyncio.run(run())


def test_a_stream_sends_its_items_in_order_and_then_its_response(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        peer.send(Request(7, "count", [500]))
        for number in range(500):
            assert await peer.read() == Notification("stream", [7, [number, ""]])
        assert await peer.read() == Response(7, None, None)

    serve(tmp_path, test)


def test_cancel_ends_a_stream_and_a_call_even_before_it_began(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        peer.send(Request(1, "forever", []))
        assert await peer.read() == Notification("stream", [1, 0])
        peer.cancel(1)
        assert error_code(await peer.response()) == "CANCELLED"
        assert node.methods.ended == 1
        peer.send(Request(2, "wait", []), Notification("cancel", [2]))
        assert error_code(await peer.response()) == "CANCELLED"
        peer.send(Notification("cancel", [99]), Notification("cancel", []), Notification("unheard.of", [1]))
        assert (await peer.call("echo", "fine", msgid=2)).result == "fine"

    serve(tmp_path, test)


def test_a_slow_call_holds_up_no_other_and_too_many_are_refused(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        peer.send(*(Request(msgid, "wait", []) for msgid in range(session.MAX_CALLS + 1)))
        refused = await peer.response()
        assert (refused.msgid, error_code(refused)) == (session.MAX_CALLS, "RESOURCE_EXHAUSTED")
        peer.cancel(0)
        assert (await peer.response()).msgid == 0
        assert (await peer.call("echo", "beside", msgid=1000)).result == "beside"
        node.methods.gate.set()
        answers = {(await peer.response()).msgid for _ in range(session.MAX_CALLS - 1)}
        assert answers == set(range(1, session.MAX_CALLS))

    serve(tmp_path, test)


def test_a_hundred_calls_at_once_are_all_answered(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        async def client(number: int) -> None:
            peer = await node.connect()
            peer.send(*(Request(msgid, "echo", [f"{number}.{msgid}"]) for msgid in range(50)))
            got = {response.msgid: response.result for response in [await peer.response() for _ in range(50)]}
            assert got == {msgid: f"{number}.{msgid}" for msgid in range(50)}

        await asyncio.gather(client(1), client(2))

    serve(tmp_path, test)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xc1", id="reserved byte"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="huge array"),
        pytest.param(b"\x91" * 9000, id="too deep"),
        pytest.param(encode(Request(5, "wait", [])), id="msgid in use"),
    ],
)
def test_garbage_ends_its_connection_with_an_error_and_only_that(tmp_path: Path, garbage: bytes) -> None:
    async def test(node: Running) -> None:
        good, bad = await node.connect(), await node.connect()
        bad.send(Request(5, "wait", []))
        await until(lambda: node.methods.running)
        bad.writer.write(garbage)
        answer = await bad.response()
        assert (answer.msgid, error_code(answer)) == (0, "INVALID_ARGUMENT")
        assert await bad.read() is None
        await until(lambda: node.methods.ended)
        assert (await good.call("echo", "intact")).result == "intact"

    serve(tmp_path, test)


def test_a_message_over_the_limit_is_refused_before_it_is_whole(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        peer.writer.write(encode(Request(1, "echo", ["x" * (1 << 20)]))[: 1 << 17])
        assert "65536" in str((await peer.response()).error)
        assert await peer.read() is None

    serve(tmp_path, test)


def test_who_leaves_ends_their_calls(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        peer.send(Request(1, "wait", []), Request(2, "forever", []))
        await peer.read()
        peer.writer.transport.abort()
        await until(lambda: node.methods.ended == 2)

    serve(tmp_path, test)


def test_one_user_cannot_take_the_connections_of_another(tmp_path: Path) -> None:
    uids = iter([1000] * (start.MAX_CONNECTIONS_OF_ONE + 1) + [1001, 1000])

    def identify(_connection: socket.socket) -> Peer:
        return Peer(1, next(uids), 1000, Role.READER, "someone")

    async def run() -> None:
        async with running(tmp_path, identify) as node:
            peers = [await node.connect() for _ in range(start.MAX_CONNECTIONS_OF_ONE)]
            assert all([(await peer.call("whoami")).result == [1000, "READER"] for peer in peers])
            for peer in peers:
                peer.send(Request(2, "wait", []))
            await until(lambda: node.methods.running == len(peers))
            refused = await node.connect()
            assert "uid 1000 has 64 connections" in str((await refused.response()).error)
            assert await refused.read() is None
            assert (await (await node.connect()).call("whoami")).result == [1001, "READER"]
            peers[0].writer.close()
            await until(lambda: len(node.api.sessions) == start.MAX_CONNECTIONS_OF_ONE)
            assert (await (await node.connect()).call("whoami")).result == [1000, "READER"]

    asyncio.run(run())


def test_the_one_of_a_user_that_was_silent_for_longest_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "MAX_CONNECTIONS_OF_ONE", 3)

    async def test(node: Running) -> None:
        busy, silent, heard = [await node.connect() for _ in range(3)]
        busy.send(Request(1, "wait", []))
        await until(lambda: node.methods.running)
        for peer in (silent, heard):
            assert (await peer.call("echo", "x")).result == "x"
        new = await node.connect()
        assert error_code(await silent.response()) == "RESOURCE_EXHAUSTED"
        assert await silent.read() is None
        for peer in (heard, new):
            assert (await peer.call("echo", "x")).result == "x"
        node.methods.gate.set()
        assert (await busy.response()).result == "done"

    serve(tmp_path, test)


def test_at_the_bound_of_all_users_the_lowest_role_gives_way_and_a_higher_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "MAX_CONNECTIONS", 2)
    roles = iter([Role.OPERATOR, Role.READER, Role.ADMIN, Role.READER, Role.ADMIN])

    def identify(_connection: socket.socket) -> Peer:
        role = next(roles)
        return Peer(1, 1000 + role, 1000, role, "someone")

    async def run() -> None:
        async with running(tmp_path, identify) as node:
            operator, reader = await node.connect(), await node.connect()
            admin = await node.connect()
            assert await reader.response()
            assert await reader.read() is None
            refused = await (await node.connect()).response()
            assert "the node has 2 connections" in str(refused.error)
            for peer in (operator, admin):
                assert (await peer.call("echo", "x")).result == "x"
            assert (await (await node.connect()).call("whoami")).result == [1000 + Role.ADMIN, "ADMIN"]
            assert error_code(await operator.response()) == "RESOURCE_EXHAUSTED"

    asyncio.run(run())


def test_a_peer_that_the_kernel_does_not_know_any_more_is_dropped(tmp_path: Path) -> None:
    def gone(_connection: socket.socket) -> Peer:
        raise ProcessLookupError

    async def run() -> None:
        async with running(tmp_path, gone) as node:
            assert await (await node.connect()).read() is None

    asyncio.run(run())


def test_everyone_may_connect_to_the_socket_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, path = Node(), str(tmp_path / "api.sock")
    monkeypatch.setattr(boot, "API_SOCKET", path)
    boot.listen(node)
    assert node.listener is not None
    os.close(node.listener)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666


def test_requests_cut_anywhere_are_put_together(tmp_path: Path) -> None:
    async def test(node: Running) -> None:
        peer = await node.connect()
        for byte in encode(Request(3, "echo", ["cut"])):
            peer.writer.write(bytes([byte]))
            await peer.writer.drain()
            await asyncio.sleep(0)
        assert await peer.response() == Response(3, None, "cut")

    serve(tmp_path, test)
