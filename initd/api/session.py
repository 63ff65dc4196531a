"""One peer's calls: the part of the API server that is the same on a socket and on a serial line.

A session takes the bytes of one peer, runs its calls side by side and writes what they give. Nothing a peer does costs
another one time or PID 1 its memory: what comes in is bounded by REQUEST_LIMITS, how much runs by MAX_CALLS and
MAX_STREAMS, and what goes out like this:

- Above a line's high-water mark the session reads no more from it. A stream waits STREAM_PATIENCE for room, then drops
  items and counts them; {"dropped": n} tells the peer as soon as there is room.
- A call waits for room before it begins: no answer is made that has nowhere to go.
- A response that the peer did not take within WRITE_DEADLINE (twice that at worst) ends its connection.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from initd import log
from initd.api import protocol
from initd.api.protocol import ApiError, Code, Message, Notification, ProtocolError, Request, Response, encode
from initd.api.registry import Call, Method, Peer, Role
from initd.node import Node

MAX_CALLS = 64
MAX_STREAMS = 256  # of all peers, and half of it of one uid: a stream lasts, and may hold a descriptor
HIGH_WATER = 256 << 10  # bytes that a line may hold back before its session slows down
WRITE_DEADLINE = 10.0  # seconds
STREAM_PATIENCE = 1.0  # seconds
READ_SIZE = 8192  # what one peer may give the loop to do in one turn: a few hundred calls at most
_BUFFER = memoryview(bytearray(READ_SIZE))  # every socket's: each is done with it before the next one reads
_STREAM_BURST = 64  # items after which a stream that never waits lets others run


class Api:
    """What every session serves, and what they share."""

    def __init__(self, node: Node, methods: Mapping[str, Method]) -> None:
        self.node = node
        self.methods = methods
        self.sessions: dict[Session, int | None] = {}  # those on sockets -> whose allowance they count in
        self.streams: dict[asyncio.Task[None], int] = {}  # those that run -> their peer's uid


class Session(asyncio.BufferedProtocol):
    """The calls of one peer on one line: a socket's transport, or a serial port."""

    def __init__(self, api: Api, line: asyncio.Transport, peer: Peer) -> None:
        self._api = api
        self._line = line
        self.peer = peer
        self._decoder = protocol.Decoder(protocol.REQUEST_LIMITS)
        self.calls: dict[int, asyncio.Task[None]] = {}
        self._dropped: dict[int, int] = {}  # msgid of a stream: items dropped and not yet told
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False
        self.heard = time.monotonic()  # when the peer last said something
        self._written = 0  # bytes, ever
        self._response_end = 0  # what _written was after the last response
        self._deadline: asyncio.TimerHandle | None = None

    def receive(self, data: bytes | memoryview) -> None:
        """Act on bytes from the peer. A malformed frame gets an error under msgid 0 and ends the session."""
        if self._closed:
            return
        self.heard = time.monotonic()
        try:
            messages, reason = self._decoder.feed(data), ""
        except ProtocolError as error:
            messages, reason = list(error.messages), str(error)
        for message in messages:
            reason = self._handle(message) or reason
        if reason:
            self.end(Code.INVALID_ARGUMENT, f"protocol error: {reason}")

    def end(self, code: Code, message: str, seconds: float = WRITE_DEADLINE) -> None:
        """Tell the peer why under msgid 0, and close once everything is written, or in so many seconds."""
        self._refuse(0, code, message)
        self._line.close()
        if not self._closed:
            asyncio.get_running_loop().call_later(seconds, self._line.abort)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the size is ours to choose
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.receive(_BUFFER[:nbytes])

    def pause_writing(self) -> None:
        """Note that the line is above its high-water mark: a peer that does not read gets nothing more to do."""
        self._room.clear()
        self._line.pause_reading()

    def resume_writing(self) -> None:
        """Note that the line has room again."""
        self._room.set()
        self._line.resume_reading()
        for msgid in list(self._dropped):
            self._tell_dropped(msgid)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it is gone changes nothing
        """End every call: the line is gone."""
        self._closed = True
        self._api.sessions.pop(self, None)
        for task in self.calls.values():
            task.cancel()
        if self._deadline:
            self._deadline.cancel()

    def _handle(self, message: Message) -> str:
        """Act on one message; return what is wrong with it, if that ends the session."""
        match message:
            case Request(msgid) if msgid in self.calls:
                return f"msgid {msgid} is in use"
            case Request():
                self._start(message)
            case Notification(protocol.CANCEL, [int(msgid)]) if msgid in self.calls:
                self.calls[msgid].cancel()
            case _:
                pass  # a cancel that came late, or something of a newer client's that wants no answer
        return ""

    def _start(self, request: Request) -> None:
        method = self._api.methods.get(request.method)
        role = self.peer.role
        if role is Role.NONE:
            self._refuse(request.msgid, Code.PERMISSION_DENIED, f"{self.peer.text} has no role on this node")
        elif method is None:
            self._refuse(request.msgid, Code.UNIMPLEMENTED, f"this node has no method {request.method[:80]!r}")
        elif role < method.role:
            wants = f"{method.name} wants the role {method.role.name.lower()}"
            self._refuse(request.msgid, Code.PERMISSION_DENIED, f"{wants}, {self.peer.text} is {role.name.lower()}")
        elif too_many := self._too_many(streaming=method.streaming):
            self._refuse(request.msgid, Code.RESOURCE_EXHAUSTED, f"{too_many}: end one, or try again later")
        else:
            task = asyncio.create_task(self._run(request, method))
            self.calls[request.msgid] = task
            if method.streaming:
                self._api.streams[task] = self.peer.uid
            task.add_done_callback(lambda task: self._finished(request.msgid, task))

    def _too_many(self, *, streaming: bool) -> str:
        uids = list(self._api.streams.values()) if streaming else []
        if len(self.calls) >= MAX_CALLS:
            return f"{MAX_CALLS} calls are running on this connection"
        if uids.count(self.peer.uid) >= MAX_STREAMS // 2:
            return f"uid {self.peer.uid} has {MAX_STREAMS // 2} streams"
        if len(uids) >= MAX_STREAMS:
            return f"the node has {MAX_STREAMS} streams"
        return ""

    async def _run(self, request: Request, method: Method) -> None:
        result, error = None, None
        if not (method.streaming or await self._wait_for_room(WRITE_DEADLINE)):
            self._line.abort()
            return
        try:
            result = await self._invoke(request, method)
        except ApiError as failure:
            error = failure
        except (Exception, SystemExit) as failure:  # noqa: BLE001 - whatever a method raises ends its call, never PID 1
            error = self._internal(method.name, failure)
        await self._respond(method.name, Response(request.msgid, error and error.to_wire(), result))

    async def _invoke(self, request: Request, method: Method) -> object:
        params = method.bind(request.params)
        if method.role > Role.READER:
            log.info("api call", method=method.name, peer=self.peer.text)
        running = method.function(Call(self._api.node, self.peer), *params)
        if not method.streaming:
            return await running
        await self._pump(request.msgid, running)
        return None

    async def _pump(self, msgid: int, items: AsyncGenerator[object, None]) -> None:
        count = 0
        async with aclosing(items):
            async for item in items:
                if not self._room.is_set() and msgid not in self._dropped:
                    await self._wait_for_room(STREAM_PATIENCE)
                if self._room.is_set():
                    self._send(_frame(Notification(protocol.STREAM, [msgid, item])))
                else:
                    self._dropped[msgid] = self._dropped.get(msgid, 0) + 1
                count += 1
                if count % _STREAM_BURST == 0:
                    await asyncio.sleep(0)
        self._tell_dropped(msgid)

    def _tell_dropped(self, msgid: int) -> None:
        dropped = self._dropped.pop(msgid, 0)
        if dropped:
            self._send(encode(Notification(protocol.STREAM, [msgid, {"dropped": dropped}])))

    async def _respond(self, name: str, response: Response) -> None:
        try:
            data = _frame(response)
        except ApiError as failure:
            data = encode(Response(response.msgid, failure.to_wire(), None))
        except (TypeError, ValueError, OverflowError) as failure:  # the method's result is not plain data
            data = encode(Response(response.msgid, self._internal(name, failure).to_wire(), None))
        if await self._wait_for_room(WRITE_DEADLINE):
            self._send(data)
            self._response_end = self._written
            self._watch()
        else:
            self._line.abort()

    def _finished(self, msgid: int, task: asyncio.Task[None]) -> None:
        """Forget a call. Cancellation is answered here: a task cancelled before its first step runs no code of its."""
        del self.calls[msgid]
        self._dropped.pop(msgid, None)
        self._api.streams.pop(task, None)
        if task.cancelled():
            self._refuse(msgid, Code.CANCELLED, "the call was cancelled")
        elif failure := task.exception():
            self._internal("session", failure)

    async def _wait_for_room(self, seconds: float) -> bool:
        if self._room.is_set():
            return True
        try:
            async with asyncio.timeout(seconds):
                while not self._room.is_set():  # the first to be woken may have filled it again
                    await self._room.wait()
        except TimeoutError:
            return False
        return True

    def _watch(self) -> None:
        """Make sure that the last response leaves within the deadline."""
        if self._line.get_write_buffer_size() and not self._deadline and not self._closed:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(WRITE_DEADLINE, self._check, self._response_end)

    def _check(self, response_end: int) -> None:
        self._deadline = None
        gone = self._written - self._line.get_write_buffer_size()
        if gone < response_end:
            self._line.abort()
        elif gone < self._response_end:
            self._watch()

    def _internal(self, name: str, failure: BaseException) -> ApiError:
        log.exception("api call failed", failure, method=name, peer=self.peer.text)
        return ApiError(Code.INTERNAL, f"{name}: {type(failure).__name__}: {failure}")

    def _refuse(self, msgid: int, code: Code, message: str) -> None:
        self._send(encode(Response(msgid, ApiError(code, message).to_wire(), None)))

    def _send(self, data: bytes) -> None:
        if not (self._closed or self._line.is_closing()):  # else asyncio warns, once for each item of a stream
            self._written += len(data)
            self._line.write(data)


def _frame(message: Message) -> bytes:
    data = encode(message)
    if len(data) > protocol.MAX_RESPONSE:
        found = f"the answer has {len(data)} bytes, more than {protocol.MAX_RESPONSE}: ask for less"
        raise ApiError(Code.RESOURCE_EXHAUSTED, found)
    return data
