"""A server of the API with methods made for tests, and a raw client for it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

from initd.api import session
from initd.api.methods import node as node_methods
from initd.api.protocol import ApiError, Code, Decoder, Message, Notification, Request, Response, encode
from initd.api.registry import Call, Method, Peer, Role
from initd.api.session import Api, Session
from initd.api.start import listen as serve_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

DEADLINE = 10.0


class Log:
    """Keeps what the API logs."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.records.append((event, fields))

    def exception(self, event: str, failure: BaseException, **fields: object) -> None:
        self.records.append((event, {"failure": failure, **fields}))


class Methods:
    """The methods, and what happened in them."""

    def __init__(self) -> None:
        self.ended = 0
        self.running = 0
        self.gate = asyncio.Event()

    def table(self) -> dict[str, Method]:
        async def echo(_call: Call, text: str) -> str:
            return text

        async def wait(_call: Call) -> str:
            self.running += 1
            try:
                await self.gate.wait()
            finally:
                self.ended += 1
            return "done"

        async def whoami(call: Call) -> list[object]:
            return [call.peer.uid, call.peer.role.name]

        async def fail(_call: Call, how: str) -> object:
            match how:
                case "exception":
                    raise ZeroDivisionError(how)
                case "exit":
                    raise SystemExit(how)
                case "error":
                    raise ApiError(Code.NOT_FOUND, "nothing here", {"have": ["x"]})
                case "big":
                    return "x" * (2 << 20)
                case _:
                    return {1, 2}  # a set is not plain data

        async def change(_call: Call) -> bool:
            return True

        async def count(_call: Call, to: int, size: int = 0) -> AsyncIterator[list[object]]:
            for number in range(to):
                yield [number, "x" * size]
            self.ended += 1

        async def forever(_call: Call) -> AsyncIterator[int]:
            try:
                for number in itertools.count():
                    yield number
                    await asyncio.sleep(0)
            finally:
                self.ended += 1

        functions: dict[str, tuple[Callable[..., Any], Role]] = {
            "echo": (echo, Role.READER),
            "wait": (wait, Role.READER),
            "whoami": (whoami, Role.READER),
            "fail": (fail, Role.READER),
            "change": (change, Role.OPERATOR),
            "count": (count, Role.READER),
            "forever": (forever, Role.READER),
            "hello": (node_methods.hello, Role.READER),
        }
        return {name: Method(name, role, function) for name, (function, role) in functions.items()}


def listen(path: str) -> socket.socket:
    """A socket that listens at path."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(path)
    os.chmod(path, 0o666)  # noqa: S103 users of all kinds connect
    listener.listen()
    return listener


def make_api(methods: Methods) -> Api:
    return Api(cast("Any", SimpleNamespace(boot_id="b")), methods.table())


class RawPeer:
    """A client that says what it is told to, and reads when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = Decoder()
        self.unread: list[Message] = []

    def send(self, *messages: Message) -> None:
        self.writer.write(b"".join(map(encode, messages)))

    async def read(self) -> Message | None:
        """Return the next message, or None at the end of the stream."""
        while not self.unread:
            try:
                data = await asyncio.wait_for(self.reader.read(1 << 16), DEADLINE)
            except ConnectionResetError:  # the server left something unread
                return None
            if not data:
                return None
            self.unread += self.decoder.feed(data)
        return self.unread.pop(0)

    async def response(self) -> Response:
        while not isinstance(message := await self.read(), Response):
            assert message is not None
        return message

    async def call(self, method: str, *params: object, msgid: int = 1) -> Response:
        self.send(Request(msgid, method, list(params)))
        return await self.response()

    def cancel(self, msgid: int) -> None:
        self.send(Notification("cancel", [msgid]))


class Running:
    """A server that runs, and the way to it."""

    def __init__(self, path: str, log: Log, methods: Methods, api: Api) -> None:
        self.path, self.log, self.methods, self.api = path, log, methods, api
        self.peers: list[RawPeer] = []

    async def session(self) -> Session:
        """Return the server's side of the first connection."""
        await until(lambda: self.api.sessions)
        return next(iter(self.api.sessions))

    async def connect(self, connection: socket.socket | None = None) -> RawPeer:
        """Return a new peer, or one that takes a connection over."""
        where = {"sock": connection} if connection else {"path": self.path}
        peer = RawPeer(*await asyncio.open_unix_connection(**where))
        self.peers.append(peer)
        return peer


def as_role(role: Role, uid: int = 1000) -> Callable[[socket.socket], Peer]:
    return lambda _connection: Peer(1, uid, 1000, role, f"uid {uid} pid 1")


@contextlib.asynccontextmanager
async def running(folder: Path, identify: Callable[[socket.socket], Peer] | None = None) -> AsyncIterator[Running]:
    log, methods = Log(), Methods()
    api = make_api(methods)
    path = str(folder / "api.sock")
    server = await serve_on(api, listen(path), identify or as_role(Role.READER))
    node = Running(path, log, methods, api)
    try:
        with mock.patch.object(session, "log", log):
            yield node
    finally:
        server.close()
        for peer in node.peers:
            peer.writer.close()
            with contextlib.suppress(OSError):  # the server was first
                await peer.writer.wait_closed()
        await until(lambda: not api.sessions)


def serve(folder: Path, test: Callable[[Running], Awaitable[None]], role: Role = Role.READER) -> None:
    """Run a test beside a server whose clients all have that role."""

    async def run() -> None:
        async with running(folder, as_role(role)) as node:
            await test(node)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    """Let others run until a condition holds; fail after the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)
