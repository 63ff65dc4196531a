"""Liveness: asking the services whether they still work, from outside of them, and what follows from the answers.

All are asked in one coalesced tick, so that an idle node wakes up rarely.
"""

import asyncio
import errno
from contextlib import suppress

from initd import log, watchdog
from initd.events import boottime
from initd.node import Node
from initd.services import Http2SocketProbe, HttpProbe
from initd.supervise.service import Service
from initd.supervise.states import Event, State

SOON = 0.1
TICK = 30.0
TIMEOUT = 5.0
PATIENCE = 30.0  # how long a service may give bad answers before it is ended; one that starts takes some seconds of it
# What a probe fails with for want of something that PID 1 or the machine has too little of: no fault of the service.
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}

# HTTP/2's connection preface and an empty SETTINGS frame (RFC 9113, 3.4); a gRPC server answers with its own SETTINGS.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS = 4


async def watch(node: Node) -> None:
    """Ask for ever: every `TICK` seconds, and sooner while a service is not known to be healthy yet. At the same ticks
    workers are asked, and the hardware's watchdog is told that the loop runs, however long the answers take.
    """
    loop, due, delay, waiting, unfed = asyncio.get_running_loop(), asyncio.Event(), SOON, False, False
    timer = loop.call_later(0, due.set)

    def period() -> float:
        return TICK if node.watchdog is None else min(TICK, node.watchdog[1] / 2)

    def tick() -> None:
        nonlocal timer, unfed
        timer.cancel()
        timer = loop.call_later(period(), tick)
        due.set()
        for worker in node.workers.values():
            if worker.state is State.RUNNING:  # else it rests, or ends
                node.spawn_task(worker.ping(PATIENCE), f"liveness of {worker.spec.name}")
        if node.watchdog is not None:
            before, unfed = unfed, False
            try:
                watchdog.feed(node.watchdog[0])
            except OSError as error:
                unfed = True
                if not before:
                    log.error("the hardware's watchdog is not fed", error=str(error))

    def changed() -> None:
        nonlocal delay
        delay = SOON
        due.set()
        if timer.when() > loop.time() + period():  # a watchdog has just been found
            tick()

    node.on_service_change = changed
    try:
        tick()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay if waiting else None):
                    await due.wait()
            due.clear()
            for outcome in await asyncio.gather(*map(ask, node.services.values()), return_exceptions=True):
                if isinstance(outcome, Exception):  # one service's fault must not end the watch over the others
                    log.exception("liveness", outcome)
            waiting = any(s.state is State.RUNNING and not s.healthy for s in node.services.values())
            delay = min(delay * 1.5, TICK)
    finally:
        timer.cancel()


async def ask(service: Service) -> None:
    """Probe one service; bad answers for `PATIENCE` seconds, or a missed watchdog, end it to start it again."""
    if service.state is not State.RUNNING:
        return
    limit = service.watchdog_seconds
    if limit and boottime() - service.watchdog_at > limit:
        service.handle(Event.UNHEALTHY, f"no WATCHDOG=1 for {limit:g} s")
        return
    process, trouble = service.process, None
    try:
        match service.spec.liveness:
            case HttpProbe(host, port, path):
                trouble = await http(host, port, path)
            case Http2SocketProbe(path):
                trouble = await http2_socket(path)
    except (OSError, MemoryError) as error:  # nobody was asked: that says nothing of the service
        log.warning(f"{service.spec.name}: not asked whether it lives", error=str(error))
        return
    if service.process is not process or service.state is not State.RUNNING:
        return  # the answer is about one that is gone
    if trouble is None:
        service.trouble_since = None
        service.set_healthy(True, "liveness")
        return
    service.trouble_since = service.trouble_since or boottime()
    service.set_healthy(False, trouble)
    # In seconds, not in answers: those of a service that is just starting come quickly one after the other.
    if boottime() - service.trouble_since >= PATIENCE:
        service.handle(Event.UNHEALTHY, trouble)


async def http(host: str, port: int, path: str, timeout: float = TIMEOUT) -> str | None:
    """GET the path; None if the answer is 200, else what is wrong in words. `timeout` is in seconds.

    Raises OSError if it could not even ask (see `OURS`).
    """
    where = f"http://{host}:{port}{path}"
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                status = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer from {where} in {timeout:g} s"
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in OURS:
            raise
        return f"{where}: {error}"
    good = status.split()[1:2] == [b"200"]
    return None if good else f"{where}: {status.decode(errors='replace').strip()!r}"


async def http2_socket(path: str, timeout: float = TIMEOUT) -> str | None:
    """Open HTTP/2 on a Unix socket; None if the server answers with its SETTINGS, else as `http`."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(_HTTP2_HELLO)
                header = await reader.readexactly(9)
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer from {path} in {timeout:g} s"
    except (OSError, asyncio.IncompleteReadError) as error:
        if getattr(error, "errno", None) in OURS:
            raise
        return f"{path}: {error}"
    return None if header[3] == _SETTINGS else f"{path}: not an HTTP/2 server"
