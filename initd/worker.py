"""What every worker has in common: its link to PID 1, its log, and how it starts.

A worker is forked by PID 1, so that both share what both have imported, with one end of a stream socketpair as
descriptor 3, on which both speak initd.api.protocol. Its log goes to standard error, one JSON object a line with the
keys event and level. It ends when PID 1 closes its end.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import socket
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import structlog

from initd import log as initd_log
from initd.api.protocol import ApiError, Code, Decoder, Notification, Request, Response, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LINK_FD = 3
WORKERS = ("network", "devices", "containers")
_READ_SIZE = 1 << 16

log = structlog.get_logger()


class Link:
    """The worker's side of the socketpair; fd is owned by it from then on."""

    def __init__(self, fd: int = LINK_FD) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._handlers: dict[str, Callable[..., Awaitable[object]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()

    def handle(self, method: str, handler: Callable[..., Awaitable[object]]) -> None:
        """Call handler with the parameters of each request and notification of that name; its result is the answer."""
        self._handlers[method] = handler

    async def notify(self, method: str, *params: object) -> None:
        """Tell PID 1 something. Waits while PID 1 does not read; raises OSError when it has closed its end."""
        await self._send(encode(Notification(method, list(params))))

    async def serve(self) -> None:
        """Answer PID 1 until it closes its end, requests side by side. Raises ProtocolError if it talks nonsense."""
        loop = asyncio.get_running_loop()
        decoder = Decoder()
        try:
            with suppress(ConnectionError):  # PID 1 may close with something unread: an end like any other
                while data := await loop.sock_recv(self._socket, _READ_SIZE):
                    for message in decoder.feed(data):
                        if not isinstance(message, Response):
                            self._start(message)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            self._socket.close()

    def _start(self, message: Request | Notification) -> None:
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
        with suppress(OSError):  # PID 1 is gone, as serve() is about to see
            await self._send(encode(Response(message.msgid, error and error.to_wire(), result)))

    async def _send(self, data: bytes) -> None:
        # Neither another frame nor the cancellation of who sends it may cut a frame: PID 1 could read no further.
        await asyncio.shield(self._send_whole(data))

    async def _send_whole(self, data: bytes) -> None:
        async with self._sending:
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


def main(name: str) -> int:
    """Run the worker initd.NAME until PID 1 closes its end; return an exit status."""
    configure_log()
    if name not in WORKERS:
        log.error("no such worker", found=name, expected=WORKERS)
        return 2
    try:
        asyncio.run(_serve(name))
    except Exception:  # PID 1 starts it again; the reason must be one record of the log, not loose lines
        log.exception("worker failed", worker=name)
        return 1
    return 0


def run_forked(name: str) -> NoReturn:
    """Be the worker `name` in a copy of PID 1, and end with it: never return into what was PID 1's doing."""
    status = 1
    try:
        # PID 1's objects stay as they are: their pages stay shared, and none is destroyed, which would close a
        # descriptor whose number is another's by now.
        gc.freeze()
        initd_log.forked()
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(f"initd-{name}")
        status = main(name)
    except BaseException:  # noqa: BLE001 whatever it is, it must not go up into PID 1's stack
        traceback.print_exc()
    finally:
        os._exit(status)


async def _serve(name: str) -> None:
    worker = importlib.import_module(f"initd.{name}.worker")
    await worker.serve(Link())
