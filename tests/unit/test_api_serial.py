"""The API on a serial line: in step after anything, and quiet while nobody is there."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import tty
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import log
from initd.api import serial, session, start
from initd.api.methods import node
from initd.api.protocol import (
    HELLO_REQUEST,
    HELLO_RESPONSE,
    Decoder,
    Marker,
    Message,
    Notification,
    Request,
    Response,
    encode,
)
from initd.api.registry import Call, Peer, Role
from initd.api.serial import Port, find_port
from initd.node import Node
from initd.supervise import backoff
from tests.unit.api_support import DEADLINE, Log, Methods, make_api, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

_ASKED = Call(cast("Any", SimpleNamespace(boot_id="b")), Peer(-1, -1, -1, Role.READER, "test"))
VERSION = cast("Any", asyncio.run(node.version(_ASKED)))
FIRST, SECOND = "a" * 32, "0123456789abcdef" * 2


class Host:
    """The host's side of a line, as the harness has it."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        line.setblocking(False)
        self.decoder = Decoder()
        self.messages: list[Message] = []
        self.methods = Methods()

    def send(self, data: bytes) -> None:
        self.line.sendall(data)

    async def hello(self, nonce: str) -> Message:
        """Come into step as after a reconnect: discard everything up to the answer with the nonce."""
        self.send(encode(Request(0, "hello", [nonce])))
        marker, found = Marker(HELLO_RESPONSE + nonce.encode()), None
        while found is None:
            found = marker.feed(await self._recv())
        self.decoder, self.messages = Decoder(), []
        self.messages += self.decoder.feed(found)
        return await self.read()

    async def read(self) -> Message:
        while not self.messages:
            self.messages += self.decoder.feed(await self._recv())
        return self.messages.pop(0)

    async def call(self, method: str, *params: object) -> Message:
        self.send(encode(Request(1, method, list(params))))
        return await self.read()

    async def _recv(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.line, 1 << 16), DEADLINE)


def serve(test: Callable[[Host, Port], Awaitable[None]], role: Role = Role.OPERATOR) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with ours:
            host = Host(ours)
            port = Port(make_api(host.methods), theirs.detach(), role)
            try:
                await test(host, port)
            finally:
                port.shut()

    asyncio.run(run())


def test_a_hello_is_answered_with_its_nonce_and_calls_follow() -> None:
    async def test(host: Host, _port: Port) -> None:
        assert await host.hello(FIRST) == Response(0, None, [FIRST, VERSION])
        assert await host.call("echo", "x") == Response(1, None, "x")
        assert await host.call("whoami") == Response(1, None, [-1, "OPERATOR"])

    serve(test)


def test_the_role_is_that_of_the_line() -> None:
    async def test(host: Host, _port: Port) -> None:
        await host.hello(FIRST)
        response = await host.call("change")
        assert isinstance(response, Response)
        assert "serial port is reader" in str(response.error)

    serve(test, Role.READER)


def test_nothing_is_answered_before_a_hello() -> None:
    async def test(host: Host, _port: Port) -> None:
        host.send(encode(Request(5, "echo", ["early"])) + b"\xc1 noise from a boot loader\r\n" + HELLO_REQUEST[:6])
        assert await host.hello(FIRST) == Response(0, None, [FIRST, VERSION])
        assert await host.call("echo", "x") == Response(1, None, "x")

    serve(test)


@pytest.mark.parametrize("cut", [1, 5, 11, 20])
def test_a_hello_in_pieces_is_found(cut: int) -> None:
    async def test(host: Host, port: Port) -> None:
        frame = encode(Request(0, "hello", [FIRST]))
        host.send(b"\xff" * 7 + frame[:cut])
        await until(lambda: port._marker._tail.endswith(frame[:cut]) or port._session)
        host.send(frame[cut:])
        assert await host.read() == Response(0, None, [FIRST, VERSION])

    serve(test)


def test_a_hello_after_half_a_frame_starts_anew_and_ends_what_ran() -> None:
    async def test(host: Host, _port: Port) -> None:
        await host.hello(FIRST)
        host.send(encode(Request(1, "wait", [])) + encode(Request(2, "forever", [])))
        await until(lambda: host.methods.running)
        host.send(encode(Request(3, "echo", ["x" * 60000]))[:5000])
        assert await host.hello(SECOND) == Response(0, None, [SECOND, VERSION])
        await until(lambda: host.methods.ended == 2)
        assert await host.call("echo", "in step") == Response(1, None, "in step")

    serve(test)


def test_garbage_on_a_line_in_step_is_told_and_then_only_a_hello_helps() -> None:
    async def test(host: Host, _port: Port) -> None:
        await host.hello(FIRST)
        host.send(b"\xc1" + encode(Request(4, "echo", ["lost"])))
        told = await host.read()
        assert isinstance(told, Response)
        assert (told.msgid, told.result) == (0, None)
        host.send(encode(Request(5, "echo", ["lost too"])))
        assert await host.hello(SECOND) == Response(0, None, [SECOND, VERSION])
        assert await host.call("echo", "x") == Response(1, None, "x")

    serve(test)


def test_a_stream_that_the_host_reads_slowly_drops_with_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "STREAM_PATIENCE", 0.01)

    async def test(host: Host, port: Port) -> None:
        await host.hello(FIRST)
        host.send(encode(Request(1, "count", [3000, 1000])))
        await until(lambda: host.methods.ended)
        assert port.get_write_buffer_size() < 2 * session.HIGH_WATER
        received = dropped = 0
        while isinstance(message := await host.read(), Notification):
            item = message.params[1]
            if isinstance(item, dict):
                dropped += item["dropped"]
            else:
                received += 1
        assert dropped
        assert received + dropped == 3000

    serve(test)


def test_when_the_host_goes_away_its_calls_end_and_the_loop_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    ready = Port._ready

    def counted(port: Port) -> None:
        nonlocal turns
        turns += 1
        ready(port)

    monkeypatch.setattr(Port, "_ready", counted)

    async def test(host: Host, port: Port) -> None:
        await host.hello(FIRST)
        host.send(encode(Request(1, "wait", [])))
        await until(lambda: host.methods.running)
        host.line.close()
        await until(lambda: host.methods.ended)
        assert port._session is None
        before = turns
        for _ in range(200):
            await asyncio.sleep(0)
        assert turns - before <= 1

    serve(test)


def test_a_host_that_comes_back_wakes_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO is like the port here: without a writer it reads as ended and polls as hung up, until one comes."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    async def run() -> None:
        log = Log()
        monkeypatch.setattr(session, "log", log)
        port = Port(make_api(Methods()), os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), Role.ADMIN)
        try:
            for count in (1, 2, 3):
                writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
                os.write(writer, encode(Request(0, "hello", [FIRST])) + encode(Request(1, "change", [])))
                await until(lambda: len(log.records) == count)  # noqa: B023 - awaited at once
                os.close(writer)
                await until(lambda: port._session is None)
        finally:
            port.shut()

    asyncio.run(run())


def test_a_terminal_that_hangs_up_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        os.set_blocking(theirs, False)
        log = Log()
        monkeypatch.setattr(session, "log", log)
        port = Port(make_api(Methods()), theirs, Role.ADMIN)
        os.write(ours, encode(Request(0, "hello", [FIRST])) + encode(Request(1, "change", [])))
        await until(lambda: log.records)
        os.close(ours)
        await until(lambda: port._session is None)
        port.shut()

    asyncio.run(run())


def test_a_port_that_comes_late_or_is_unplugged_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST", 0.001)
    ports: list[int] = []
    failures: list[str] = []

    def open_port(_device: str) -> int:
        if not ports:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return ports.pop()

    monkeypatch.setattr(serial, "find_port", lambda: "/dev/vport1p1" if failures else None)
    monkeypatch.setattr(serial, "open_port", open_port)
    monkeypatch.setattr(log, "exception", lambda _event, failure, **_fields: failures.append(str(failure)))

    async def run() -> None:
        node = Node()
        node.loop, node.command_line = asyncio.get_running_loop(), {"initd.api.serial": "admin"}
        await start.serve(node)
        for count, nonce in ((2, FIRST), (4, SECOND)):
            await until(lambda: len(failures) == count)  # noqa: B023 - awaited at once
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            ports.append(theirs.detach())
            host = Host(ours)
            await host.hello(nonce)
            host.send(encode(Request(1, "version", [])))
            await until(lambda: select.select([ours], [], [], 0)[0])  # noqa: B023 - awaited at once
            ours.close()  # with something unread, so that the port's next read fails
        await until(lambda: len(failures) == 6)
        (task,) = node.tasks
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        none, *told = failures
        assert none == "no virtio-serial port io.initd.api"
        busy, reset = "[Errno 16] Device or resource busy", "[Errno 104] Connection reset by peer"
        assert told == [busy, reset, busy, reset, busy], "what fails in the same way again is not told again"

    asyncio.run(run())


def test_the_port_is_found_by_its_name(tmp_path: Path) -> None:
    for entry, name in (("vport1p1", "org.qemu.guest_agent.0"), ("vport2p1", "io.initd.api")):
        (tmp_path / entry).mkdir()
        (tmp_path / entry / "name").write_text(f"{name}\n")
    (tmp_path / "vport0p0").mkdir()
    assert find_port(ports=str(tmp_path)) == "/dev/vport2p1"
    assert find_port("other", str(tmp_path)) is None
    assert find_port(ports=str(tmp_path / "none")) is None
