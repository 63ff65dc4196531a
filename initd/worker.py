"""What every worker has in common: its link to PID 1, its log, and how it starts.

A worker is forked by PID 1, so that both share what both have imported, with one end of a stream socketpair as
descriptor 3, on which both speak initd.api.protocol. Its log goes to standard error, one JSON object a line with the
keys event and level. It ends when PID 1 closes its end.

One that has nothing to do offers to end (`Rest`): PID 1 then watches the descriptors that it hands over, and starts it
again when one is readable, at its time, or for a call. It gets the descriptors back, with what is still to be read.
"""

import asyncio
import gc
import importlib
import logging
import os
import select
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn

import structlog

from initd import log as initd_log
from initd.api import types as _types  # noqa: F401 made once, for all workers and for what they tell PID 1
from initd.api.protocol import ApiError, Code, Decoder, Limits, Notification, Request, Response, encode

LINK_FD = 3
PING = "ping"  # what the link itself answers: its worker's loop runs
QUIET_SECONDS = 20.0
ANSWER_SECONDS = 1.0
DESCRIPTORS = 16  # that PID 1 takes
_READ_SIZE = 1 << 16

log = structlog.get_logger()


class Rest(NamedTuple):
    """Terms on which a worker ends: in how many seconds it is needed next (None: never), what wakes it before."""

    wake_after: float | None
    descriptors: list[int]


class Link:
    """The worker's side of the socketpair; fd is owned by it from then on. `kept` are the descriptors that an earlier
    process handed over, in its order: whoever takes one removes it.
    """

    def __init__(self, fd: int = LINK_FD, kept: int = 0) -> None:
        self.kept = list(range(fd + 1, fd + 1 + kept))
        self._received = 0
        self._busy = True
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._handlers: dict[str, Callable[..., Awaitable[object]]] = {PING: lambda: asyncio.sleep(0, True)}
        self._running: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()

    def handle(self, method: str, handler: Callable[..., Awaitable[object]]) -> None:
        """Call handler with the parameters of each request and notification of that name; its result is the answer."""
        self._handlers[method] = handler

    async def notify(self, method: str, *params: object) -> None:
        """Tell PID 1 something. Waits while PID 1 does not read."""
        await self._send(encode(Notification(method, list(params))))

    def touch(self) -> None:
        """There was something to do: not a moment to rest."""
        self._busy = True

    async def serve(self, rest: Callable[[], Rest | None] = lambda: Rest(None, []), quiet: float | None = None) -> None:
        """Answer PID 1 until it closes its end, requests side by side. Raises ProtocolError if it talks nonsense.

        After `quiet` or QUIET_SECONDS without work `rest` says on what terms the worker may end; None: it must stay.
        """
        loop = asyncio.get_running_loop()
        decoder = Decoder()
        resting = asyncio.create_task(self._rest(rest, quiet or QUIET_SECONDS))
        try:
            with suppress(ConnectionError):  # PID 1 may close with something unread: an end like any other
                while data := await loop.sock_recv(self._socket, _READ_SIZE):
                    for message in decoder.feed(data):
                        if not isinstance(message, Response):
                            self._start(message)
        finally:
            tasks = [resting, *self._running]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._socket.close()

    async def _rest(self, rest: Callable[[], Rest | None], quiet: float) -> None:
        while True:
            await asyncio.sleep(quiet)
            if not self._busy and not self._running and (terms := rest()) is not None:
                frame = encode(Notification("idle", [self._received, *terms]))  # too short to go in parts
                with suppress(OSError):  # PID 1 does not read now: the offer is made again
                    self._socket.send(frame)
                    # Whatever comes from now on is for the next process: nothing is read until PID 1 ends this one, or
                    # asks it for something.
                    select.select([self._socket], [], [], ANSWER_SECONDS)
            self._busy = False

    def _start(self, message: Request | Notification) -> None:
        self._received += 1
        if message.method != PING:  # which is no work: one that has nothing else to do may rest
            self.touch()
        task = asyncio.create_task(self._answer(message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, message: Request | Notification) -> None:
        result, error = None, None
        try:
            handler = self._handlers.get(message.method)
            if handler is None:
                raise ApiError(Code.UNIMPLEMENTED, f"this worker has no method {message.method!r}")  # noqa: TRY301
            result = await handler(*message.params)
        except ApiError as failure:
            error = failure
        except Exception as failure:  # a fault in one call must not end the others
            log.exception("call failed", method=message.method)
            error = ApiError(Code.INTERNAL, f"{message.method}: {type(failure).__name__}: {failure}")
        if isinstance(message, Notification):
            if error:
                log.warning("notification not handled", method=message.method, error=str(error))
            return
        answer = encode(Response(message.msgid, error and error.to_wire(), result))
        if len(answer) > Limits().message:  # which PID 1 would take for nonsense
            error = ApiError(Code.RESOURCE_EXHAUSTED, f"{message.method}: the answer has {len(answer)} bytes")
            answer = encode(Response(message.msgid, error.to_wire(), None))
        await self._send(answer)

    async def _send(self, data: bytes) -> None:
        # Neither another frame nor the cancellation of who sends it may cut a frame: PID 1 could read no further.
        await asyncio.shield(self._send_whole(data))

    async def _send_whole(self, data: bytes) -> None:
        async with self._sending:
            with suppress(OSError):  # PID 1 has closed its end, as serve() is about to see
                await asyncio.get_running_loop().sock_sendall(self._socket, data)


def configure_log() -> None:
    """Send structlog's and the standard library's records to standard error as JSON lines."""
    structlog.reset_defaults()  # of PID 1, if this is a copy of it
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=repr),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


class _Forward(logging.Handler):
    """Passes what asyncio and libraries log on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write(record.getMessage(), logger=record.name, exc_info=record.exc_info)


def main(name: str, kept: int = 0) -> int:
    """Run the worker initd.NAME until PID 1 closes its end; return an exit status. `kept`: see `Link`."""
    configure_log()
    try:
        asyncio.run(_serve(name, kept))
    except Exception:  # PID 1 starts it again; the reason must be one record of the log, not loose lines
        log.exception("worker failed", worker=name)
        return 1
    return 0


def run_forked(name: str, kept: int) -> NoReturn:
    """Be the worker `name` in a copy of PID 1, and end with it: never return into what was PID 1's doing."""
    status = 1
    try:
        # PID 1's objects stay as they are: their pages stay shared, and none is destroyed, which would close a
        # descriptor whose number is another's by now.
        gc.freeze()
        initd_log.forked()
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(f"initd-{name}")
        status = main(name, kept)
    except BaseException:  # noqa: BLE001 whatever it is, it must not go up into PID 1's stack
        traceback.print_exc()
    finally:
        os._exit(status)


async def _serve(name: str, kept: int) -> None:
    worker = importlib.import_module(f"initd.{name}.worker")
    gc.enable()  # see initd.__main__
    await worker.serve(Link(kept=kept))
