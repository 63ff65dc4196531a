"""PID 1's side of a worker: a service of its own that answers calls and sends notifications over a socketpair."""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from initd import log, native, worker
from initd.api.protocol import ApiError, Code, Decoder, Notification, ProtocolError, Request, Response, encode
from initd.events import EventLog, boottime
from initd.services import ServiceSpec
from initd.supervise.reap import Reaper
from initd.supervise.service import Service
from initd.supervise.states import Event, State

LINK = 3
CHUNK = 256 << 10
TIMEOUT = 30.0
UNREAD_BYTES = 1 << 20  # that the kernel keeps, as far as it grants them, for a worker that does not read yet
KINDS = 16  # of notifications kept for a handler to come
IDLE = "idle, starts when needed"
BY_CLOCK = "its time has come"
WAKE_SECONDS = (1.0, 86400.0)  # the soonest and the latest that a resting worker is started


class WorkerGoneError(ApiError):
    """The worker has ended; if it is still wanted, there is soon another one."""


class Worker(Service):
    """A supervised worker. One that says that it is idle is stopped; a call, its time, or what can be read from a
    descriptor that it handed over starts it again.
    """

    def __init__(
        self, spec: ServiceSpec, events: EventLog, reaper: Reaper, pipe: tuple[int, int] | None = None
    ) -> None:
        super().__init__(spec, events, reaper, pipe)
        self._handlers: dict[str, Callable[..., None]] = {}
        self._unheard: dict[str, list[Any]] = {}
        self.on_start: Callable[[], None] = lambda: None
        self._socket: socket.socket | None = None
        self._child_end: socket.socket | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._msgid = 0
        self._decoder: Any = None
        self._sent = 0
        self._kept: list[int] = []
        self._wake_after: float | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()

    def on(self, method: str, handler: Callable[..., None]) -> None:
        """Have notifications `method` go to `handler` from now on; the last that came too early, at once."""
        self._handlers[method] = handler
        if method in self._unheard:
            self._notified(method, self._unheard.pop(method))

    def _descriptors(self) -> dict[int, int]:
        self._close()
        self._ignore_wakes()
        self._socket, self._child_end = socket.socketpair()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        return {LINK + number: fd for number, fd in enumerate([self._child_end.fileno(), *self._kept])}

    def forked(self) -> NoReturn:
        """Be the worker, in a copy of PID 1 that shares what both have imported."""
        worker.run_forked(self.spec.name, len(self._kept))

    def started(self) -> None:
        """Its end of the pair is its own now; a worker is up as soon as it runs."""
        if self._child_end is not None:
            self._child_end.close()
        self._kept, self._wake_after = _closed(self._kept), None
        self._connect()
        try:
            self.on_start()
        except Exception as failure:  # noqa: BLE001 it runs; that it was not told something must not lose sight of it
            log.exception(f"{self.spec.name}: what follows from its start failed", failure)
        if self._loop is not None:
            self._loop.call_soon(self._up)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """See `Service.attach`; a worker that runs already is connected."""
        super().attach(loop)
        self._connect()
        if self.process is not None:
            self._up()

    def _up(self) -> None:
        self.handle(Event.READY, "running")

    def _enter(self, state: State, reason: str) -> None:
        if state is State.STARTING or self.retired:
            self.routine = reason == BY_CLOCK  # until it is started for another reason
        super()._enter(state, reason)
        if state not in {State.STARTING, State.STOPPING, State.RESTARTING, State.FAILING}:
            self._settled.set()  # for calls that wait, whatever became of it

    def ended(self) -> None:
        """Its calls can never be answered any more. One that rests is watched for."""
        self._close()
        if self.state is not State.STOPPING or self._loop is None:
            return
        if self.status_text == IDLE:
            self.last_exit = None  # it was asked to, at its own wish
        for fd in self._kept:
            try:
                self._loop.add_reader(fd, self._wake, "the kernel has news")
            except OSError as error:
                log.warning(f"{self.spec.name}: handed over what cannot be watched", error=str(error))
        if self._wake_after is not None:
            self._wake_timer = self._loop.call_later(self._wake_after, self._wake, BY_CLOCK)

    def _wake(self, reason: str) -> None:
        self._ignore_wakes()
        self.start(reason)

    def _ignore_wakes(self) -> None:
        if self._loop is not None:
            for fd in self._kept:
                self._loop.remove_reader(fd)
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None

    def _connect(self) -> None:
        if self._loop is None or self._socket is None:
            return
        self._decoder = Decoder()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def _close(self) -> None:
        if self._child_end is not None:
            self._child_end.close()
        if self._socket is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._sent = 0
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done():
                call.set_exception(self._unavailable(self.last_exit or "not running"))

    def _unavailable(self, why: str) -> Exception:
        return WorkerGoneError(Code.UNAVAILABLE, f"worker {self.spec.name}: {why}")

    def tell(self, method: str, *params: object) -> None:
        """Send a notification, which one that does not run or read never gets. Needs no loop: it may be starting."""
        with suppress(BlockingIOError):
            self._send(encode(Notification(method, list(params))))

    async def call(self, method: str, *params: object, timeout: float = TIMEOUT) -> Any:
        """Call a method of the worker. Raises ApiError: the worker's own, or UNAVAILABLE, or DEADLINE_EXCEEDED."""
        try:
            async with asyncio.timeout(timeout):
                if self.state in {State.DOWN, State.STOPPING} and not self.retired:  # it rests, or is about to
                    self._settled.clear()
                    self.start("called")
                    await self._settled.wait()
                return await self._ask(method, params)
        except TimeoutError:
            text = f"worker {self.spec.name}: no answer to {method} in {timeout:g} s"
            raise ApiError(Code.DEADLINE_EXCEEDED, text) from None

    async def _ask(self, method: str, params: tuple[object, ...]) -> Any:
        if self._socket is None or self._loop is None:
            raise self._unavailable(self.last_exit or "not running")
        self._msgid = msgid = self._msgid % 0xFFFF_FFFF + 1
        future = self._calls[msgid] = self._loop.create_future()
        try:
            self._send(encode(Request(msgid, method, list(params))))
            return await future
        except BlockingIOError:
            raise self._unavailable("it does not read what it is asked") from None
        finally:
            self._calls.pop(msgid, None)

    async def ping(self, timeout: float) -> None:
        """End one that runs and does not answer within `timeout` seconds, to start it again."""
        process = self.process
        try:
            await self.call(worker.PING, timeout=timeout)
        except ApiError as error:
            if self.process is process:  # else it has ended by itself
                self.handle(Event.UNHEALTHY, error.message)

    def _send(self, data: bytes) -> None:
        """Send a frame; one that has ended gets none. Raises BlockingIOError if there is no room.

        It never waits: who reads nothing for so long is ended by liveness.
        """
        if self._socket is None:
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            raise
        except OSError:
            return  # its end is reaped, and told from there
        self._sent += 1
        if sent < len(data):
            self.handle(Event.UNHEALTHY, "does not read what it is asked")  # nor could it any more: a frame is torn

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._loop is not None:
                self._loop.remove_reader(self._socket.fileno())
            return  # it ends soon; one that does not answers no ping
        try:
            messages = self._decoder.feed(data)
        except ProtocolError as malformed:
            # A worker that talks nonsense is broken: a new one takes over.
            self.handle(Event.UNHEALTHY, f"malformed message: {malformed}")
            return
        for message in messages:
            match message:
                case Response(msgid, error, result):
                    self._answer(msgid, error, result)
                case Notification("idle", params):
                    self._is_idle(params)
                case Notification(method, params):
                    self._notified(method, params)
                case _:
                    log.warning(f"{self.spec.name}: calls PID 1, which serves no worker", message=repr(message)[:200])

    def _is_idle(self, params: list[Any]) -> None:
        """End a worker that offers it, unless it has not read all that it was sent: it offers again later. Its
        descriptors are taken out of it by their numbers.
        """
        soonest, latest = WAKE_SECONDS
        settled = self._ready_at is not None and boottime() - self._ready_at >= soonest  # else it could spin
        match params:
            case [received, None | float() as wake_after, [*numbers]] if received == self._sent and self.process:
                if not settled or self._calls or len(numbers) > worker.DESCRIPTORS:
                    return
                self._kept = _closed(self._kept)
                try:
                    self._kept += (native.pidfd_getfd(self.process.pidfd, number) for number in numbers)
                except (OSError, TypeError, OverflowError) as error:
                    self._kept = _closed(self._kept)
                    log.warning(f"{self.spec.name}: handed over what cannot be had", error=str(error))
                    return
                self._wake_after = None if wake_after is None else min(max(soonest, wake_after), latest)
                self.status_text = IDLE
                self.stop("idle")

    def _answer(self, msgid: int, error: Any, result: object) -> None:
        future = self._calls.get(msgid)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(ApiError.from_wire(error))

    def _notified(self, method: str, params: list[Any]) -> None:
        handler = self._handlers.get(method)
        if handler is None:
            if len(self._unheard) < KINDS:
                self._unheard[method] = params
            return
        try:
            handler(*params)
        except Exception as failure:  # noqa: BLE001 what a worker says must not end the loop
            log.exception(f"{self.spec.name}: notification {method} failed", failure)


def _closed(descriptors: list[int]) -> list[int]:
    """Close them; none are left."""
    for fd in descriptors:
        os.close(fd)
    return []
