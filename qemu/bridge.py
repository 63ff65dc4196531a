"""api.sock on the host for the serial port in the guest: many clients, none of which can hurt another.

The bridge has a thread with an asyncio loop of its own; every public method may be called from any thread.

- A frame goes to the guest in one piece. A client whose frame does not fit now is not read further; the others wait for
  nobody but the guest.
- A client that does not read what it asked for is cut off at CLIENT_BUFFER bytes. One that vanishes has its calls
  cancelled.
- When PID 1 is replaced (a reboot, an exec of itself), outstanding calls are answered UNAVAILABLE, clients stay
  connected, and a hello with a fresh nonce is sent until it is answered.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import itertools
import socket
import termios
import threading
from typing import TYPE_CHECKING, Any, Protocol

from initd.api.protocol import ApiError, Code, Decoder, Message, Notification, ProtocolError, Request, Response, encode
from qemu.errors import MachineStoppedError, MachineTimeoutError
from qemu.mux import FROM_CLIENT, Line, Multiplexer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from initd.api.types import VersionInfo

CLIENT_BUFFER = 4 << 20
_GUEST_BUFFER = 256 << 10
_CHUNK = 64 << 10
_HELLO_INTERVAL = 0.25  # seconds between hellos that nobody answered
_PROBE_TIMEOUT = 2.0  # seconds that a PID 1 has to answer before it is taken for another one that waits for a hello
_SILENCE = 5.0  # seconds without a byte from the guest after a request, before it is probed
_OBSERVER, _PROBE, _FIRST_CLIENT = 0, 1, 2  # the bridge's own calls have client numbers too


class Observer(Protocol):
    """Who wants the events. Called in the bridge's thread; must not block."""

    def answered(self, version: VersionInfo) -> int:
        """The node answered a hello. Return the sequence number after which events are wanted."""

    def event(self, event: dict[str, Any]) -> None:
        """Take one event, oldest first."""


class Bridge:
    """Serves path for the guest at the other end of line, a connected stream socket that the bridge owns from now
    on.
    """

    def __init__(self, line: socket.socket, path: Path, observer: Observer | None = None) -> None:
        self._line = line
        self._path = path
        self._observer = observer
        self._state = Line()
        self._mux = Multiplexer()
        self._numbers = itertools.count(_FIRST_CLIENT)
        self._clients: dict[int, asyncio.StreamWriter] = {}
        self._doubt: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"bridge {path}", daemon=True)
        self._ready = threading.Event()
        self._changed = threading.Condition()  # guards the four below, which are for callers in other threads
        self._asked = 0  # fresh nonces sent
        self._answered = 0  # the value of _asked whose nonce was echoed last
        self._version: VersionInfo | None = None
        self._closed = False

    # The public part: any thread.

    def start(self) -> None:
        """Serve until close(). Raises OSError if path cannot be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
        except OSError:
            listener.close()
            self._line.close()
            raise
        self._listener = listener
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """Cut the clients off and end. Whoever waits gets MachineStoppedError."""
        with contextlib.suppress(RuntimeError):  # the loop ended by itself when the line did
            self._loop.call_soon_threadsafe(self._finished.set)
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def lost(self) -> None:
        """Take note that whoever answered is gone: the port was closed, or the machine reset."""
        self._post(self._resync)

    def opened(self) -> None:
        """Take note that the port was opened. QEMU may say so late, when the opener already answered: then it is asked
        before it is doubted.
        """
        self._post(self._probe)

    def wait(self, timeout: float) -> VersionInfo:
        """Return who answers, at once or as soon as somebody does. Raises MachineTimeoutError, MachineStoppedError."""
        return self._wait(0, timeout)

    def verify(self, timeout: float) -> VersionInfo:
        """Send a hello with a fresh nonce and return who echoes it. Ends outstanding calls (UNAVAILABLE), as any hello
        does.
        """
        with self._changed:
            fresh = self._asked + 1
        self._post(self._resync)
        return self._wait(fresh, timeout)

    def _wait(self, nonce: int, timeout: float) -> VersionInfo:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._version and self._answered >= nonce), timeout)
            if self._closed:
                raise MachineStoppedError("the machine is gone")
            if self._version is None or self._answered < nonce:
                raise MachineTimeoutError(f"the node did not answer on its serial port in {timeout:g} s")
            return self._version

    def _post(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing to tell it
            self._loop.call_soon_threadsafe(function)

    # From here on everything runs in the loop.

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._ready.set()
            self._loop.close()

    async def _main(self) -> None:
        self._finished = asyncio.Event()
        self._out_of_step = asyncio.Event()
        reader, self._guest = await asyncio.open_unix_connection(sock=self._line, limit=_CHUNK)
        self._guest.transport.set_write_buffer_limits(high=_GUEST_BUFFER)
        server = await asyncio.start_unix_server(self._serve, sock=self._listener, limit=_CHUNK)
        self._resync()
        self._ready.set()
        self._spawn(self._keep_saying_hello())
        self._spawn(self._read_guest(reader))
        await self._finished.wait()
        server.close()
        for writer in [*self._clients.values(), self._guest]:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}  # clients' handlers, and callers in wait()
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The guest's side.

    async def _read_guest(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(_CHUNK):
                self._from_guest(data)
        except OSError:
            pass  # QEMU was killed: an end like any other
        self._finished.set()

    def _from_guest(self, data: bytes) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None
        was_in_step = self._state.version is not None
        try:
            messages = self._state.feed(data)
        except ProtocolError:
            self._resync()
            return
        if not was_in_step and self._state.version is not None:
            self._out_of_step.clear()
            with self._changed:
                self._version, self._answered = self._state.version, self._asked
                self._changed.notify_all()
            self._observe()
        for message in messages:
            if routed := self._mux.from_guest(message):
                self._deliver(*routed)

    def _resync(self) -> None:
        """Fall out of step, end all calls and begin with a fresh nonce."""
        self._out_of_step.set()
        with self._changed:
            self._version = None
            self._asked += 1
        self._guest.write(self._state.hello())
        for client, response in self._mux.reset(ApiError(Code.UNAVAILABLE, "the connection to the node began afresh")):
            self._deliver(client, response)

    async def _keep_saying_hello(self) -> None:
        while True:
            await self._out_of_step.wait()
            await asyncio.sleep(_HELLO_INTERVAL)
            # While nobody has the port open QEMU leaves the last hello unread, and another one would only queue up
            # behind it.
            if (
                self._state.version is None
                and not self._guest.transport.get_write_buffer_size()
                and not _unread(self._line)
            ):
                self._guest.write(self._state.hello_again())

    def _probe(self) -> None:
        self._doubt = None
        if self._state.version is not None:
            self._spawn(self._ask_for_life())

    async def _ask_for_life(self) -> None:
        version = self._state.version
        self._mux.drop(_PROBE)
        self._request(_PROBE, Request(0, "version", []))
        self._probed = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._probed.wait(), _PROBE_TIMEOUT)
        if not self._probed.is_set() and self._state.version is version:
            self._resync()

    def _observe(self) -> None:
        if self._observer is not None and self._state.version is not None:
            after = self._observer.answered(self._state.version)
            self._request(_OBSERVER, Request(0, "events", [after, True]))

    # The clients' side.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = next(self._numbers)
        self._clients[client] = writer
        decoder = Decoder(FROM_CLIENT)
        try:
            while (data := await reader.read(_CHUNK)) and await self._take(client, decoder, data):
                pass
        except OSError:
            pass  # a client that vanishes is no news
        finally:
            del self._clients[client]
            for cancel in self._mux.drop(client):
                self._guest.write(encode(cancel))
            writer.close()

    async def _take(self, client: int, decoder: Decoder, data: bytes) -> bool:
        """Pass on what data completes; False if the client must go, which it is told."""
        failure: ProtocolError | None = None
        try:
            messages = decoder.feed(data)
        except ProtocolError as error:
            messages, failure = list(error.messages), error
        try:
            for message in messages:
                await self._from_client(client, message)
        except ProtocolError as error:
            failure = error
        if failure is not None:
            refusal = ApiError(Code.INVALID_ARGUMENT, f"malformed message: {failure}")
            self._deliver(client, Response(0, refusal.to_wire(), None))
        return failure is None

    async def _from_client(self, client: int, message: Message) -> None:
        """Pass one frame on; returns when the guest's side has room for another one or was replaced."""
        match message:
            case Request() if self._state.version is None:
                error = ApiError(
                    Code.UNAVAILABLE, "the node does not answer on its serial port: booting, rebooting or stopped"
                )
                self._deliver(client, Response(message.msgid, error.to_wire(), None))
                return
            case Request():
                try:
                    self._request(client, message)
                except ApiError as error:
                    self._deliver(client, Response(message.msgid, error.to_wire(), None))
                    return
            case Notification() if cancel := self._mux.notification(client, message):
                self._guest.write(encode(cancel))
        if self._guest.transport.get_write_buffer_size() > _GUEST_BUFFER:
            await self._room()

    def _request(self, client: int, request: Request) -> None:
        self._guest.write(encode(self._mux.request(client, request)))
        # The node may have ended the session without a word that got through; then nobody else would ever notice.
        if self._doubt is None:
            self._doubt = self._loop.call_later(_SILENCE, self._probe)

    async def _room(self) -> None:
        waits: set[asyncio.Task[Any]] = {
            self._loop.create_task(self._guest.drain()),
            self._loop.create_task(self._out_of_step.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _deliver(self, client: int, message: Message) -> None:
        if client == _PROBE:
            self._probed.set()
        elif client == _OBSERVER:
            self._deliver_observed(message)
        elif writer := self._clients.get(client):
            writer.write(encode(message))
            if writer.transport.get_write_buffer_size() > CLIENT_BUFFER:
                writer.transport.abort()

    def _deliver_observed(self, message: Message) -> None:
        match message:
            case Notification(params=[_, dict(event)]) if self._observer is not None:
                self._observer.event(event)
            case Response():
                # The stream ended although the line did not: the node cut us off. Begin again after a pause, in which
                # the line may have gone as well.
                self._loop.call_later(1.0, self._observe_again, self._state.version)

    def _observe_again(self, version: VersionInfo | None) -> None:
        if version is not None and version is self._state.version:
            self._observe()


def _unread(connection: socket.socket) -> int:
    """Return how many bytes the peer has not read yet (SIOCOUTQ, which has TIOCOUTQ's number)."""
    size = array.array("i", [0])
    fcntl.ioctl(connection, termios.TIOCOUTQ, size)
    return size[0]
