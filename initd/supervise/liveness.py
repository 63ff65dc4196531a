"""The tick that asks every service whether it lives, and what follows from the answers."""

import asyncio

from initd import log, watchdog
from initd.events import boottime
from initd.node import Node
from initd.services import Http2SocketProbe, HttpProbe
from initd.supervise import health
from initd.supervise.service import Service
from initd.supervise.states import Event, State

SOON = 0.1


async def watch(node: Node) -> None:
    """Ask for ever: every `health.TICK` seconds, and sooner while a service is not known to be healthy yet. Each time
    the hardware's watchdog is told that the loop runs.
    """
    changed = asyncio.Event()
    node.on_service_change = changed.set
    delay = SOON
    while True:
        changed.clear()
        longest = health.TICK if node.watchdog is None else min(health.TICK, node.watchdog[1] / 2)
        if node.watchdog is not None:
            watchdog.feed(node.watchdog[0])
        services = list(node.services.values())
        for outcome in await asyncio.gather(*map(ask, services), return_exceptions=True):
            if isinstance(outcome, Exception):  # one service's fault must not end the watch over the others
                log.exception("liveness", outcome)
        waiting = any(s.state is State.RUNNING and not s.healthy for s in node.services.values())
        delay = min(delay * 1.5, longest) if waiting else longest
        try:
            async with asyncio.timeout(delay):
                await changed.wait()
                delay = SOON
        except TimeoutError:
            pass  # the tick


async def ask(service: Service) -> None:
    """Probe one service; bad answers for `health.PATIENCE` seconds, or a missed watchdog, end it to start it again."""
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
                trouble = await health.http(host, port, path)
            case Http2SocketProbe(path):
                trouble = await health.http2_socket(path)
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
    if boottime() - service.trouble_since >= health.PATIENCE:
        service.handle(Event.UNHEALTHY, trouble)
