"""The network worker: owns the links that the configuration names and keeps them as it says.

It acts on three things only: a request from PID 1, a notification from the kernel, a DHCP answer or deadline.
"""

import asyncio
import os
import socket
from contextlib import closing
from functools import partial
from typing import Any

import structlog

from initd.api.types import LinkInfo, NetworkState, TimeState
from initd.network import monitor
from initd.network.lease import Lease
from initd.network.managed import Managed, link_info
from initd.network.netlink import LOOPBACK, Netlink, boottime
from initd.network.plan import Interface, Link
from initd.network.sntp import Clock
from initd.worker import Link as Connection
from initd.worker import Rest

_DEFAULT = [Interface(dhcp=True)]
_LOOPBACK = Interface(name="lo")
log = structlog.get_logger()


class Network:
    """Every link that is owned, by index, and the state made of them."""

    def __init__(self, kept: int | None = None) -> None:
        self.changed = asyncio.Event()
        # First, so that nothing happens unheard between the first look and the first news.
        self._monitor = monitor.listen() if kept is None else socket.socket(fileno=kept)
        self._certain = kept is not None and not monitor.drain(self._monitor)
        self._netlink = Netlink()
        self._managed: dict[int, Managed] = {}
        self._interfaces = _DEFAULT
        self._config: dict[str, Any] = {}
        self.clock = Clock()
        asyncio.get_running_loop().add_reader(self._monitor, self._read)

    def close(self) -> None:
        """Leave the links as they are."""
        asyncio.get_running_loop().remove_reader(self._monitor)
        for managed in self._managed.values():
            managed.close()
        self._monitor.close()
        self._netlink.close()

    async def configure(
        self, config: dict[str, Any], lease: dict[str, Any] | None = None, clock: TimeState | None = None
    ) -> bool:
        """Take a (new) configuration. A lease from an earlier process is asked for again instead of a new one; there is
        nothing to ask if that process rested and no link has changed since. So it is with what that knew of the time.
        """
        self._config = config
        self.clock.state = clock or self.clock.state
        self._interfaces = [Interface(**table) for table in config.get("interfaces", ())] or _DEFAULT
        for index, managed in list(self._managed.items()):
            if self._interface_of(managed.link) != managed.interface:
                del self._managed[index]
                managed.forget()
        try:
            held = {lease.pop("link"): Lease(**lease)} if lease else {}
        except (KeyError, TypeError):  # of a worker that was not this one
            held = {}
        self._look(held)
        return True

    async def links(self) -> list[LinkInfo]:
        """Every link, those included that are not owned."""
        items = self._netlink.items()
        return [
            link_info(link, items[link.index], managed=link.index in self._managed) for link in self._netlink.links()
        ]

    def state(self) -> NetworkState:
        """What came of the configuration."""
        # As the configuration lists them, several for one entry by index.
        places = [_LOOPBACK, *self._interfaces]
        owned = sorted(self._managed.values(), key=lambda item: (places.index(item.interface), item.link.index))
        configured = [managed for managed in owned if managed.interface != _LOOPBACK]
        present = [managed.interface for managed in configured]
        leases = [managed.lease for managed in configured if managed.lease]
        # Without a configuration a second card may well have no cable; a configured one should.
        asked = [managed for managed in configured if managed.link.running or self._interfaces != _DEFAULT]
        absent = [item.name or item.mac or "any Ethernet link" for item in self._interfaces if item not in present]
        return {
            "ready": bool(asked) and not any(managed.reasons for managed in asked),
            "reasons": [
                *(reason for managed in owned for reason in managed.reasons),
                *(f"{name}: no such link" for name in absent),
            ],
            "hostname": next((lease.hostname for lease in leases if lease.hostname), None),
            "address": next((managed.address for managed in configured if managed.address), None),
            "dns": self._config.get("dns") or list(dict.fromkeys(server for lease in leases for server in lease.dns)),
            "ntp": self._config.get("ntp") or list(dict.fromkeys(server for lease in leases for server in lease.ntp)),
            "lease": next(({"link": m.link.name, **m.lease._asdict()} for m in configured if m.lease), None),
        }

    def rest(self) -> Rest | None:
        """PID 1 hears what the kernel has to say of our links; it can hand one lease back, so more keep us here."""
        clients = [managed.client for managed in self._managed.values() if managed.client]
        busy = self.clock.asking or any(client.listening for client in clients)
        if not self._managed or busy or sum(client.lease is not None for client in clients) > 1:
            return None
        deadlines = [at for at in (self.clock.due, *(client.deadline for client in clients)) if at is not None]
        wake_after = max(0.0, min(deadlines) - boottime()) if deadlines else None
        return Rest(wake_after, [self._monitor.fileno()])

    def _interface_of(self, link: Link) -> Interface | None:
        """What the configuration asks of a link; one link only for each entry with a name or hardware address."""
        for interface in self._interfaces:
            taken = any(m.interface == interface and m.link.index != link.index for m in self._managed.values())
            if interface.matches(link) and (interface in _DEFAULT or not taken):
                return interface
        return _LOOPBACK if link.index == LOOPBACK else None

    def _read(self) -> None:
        monitor.drain(self._monitor)
        self._look({})

    def _look(self, leases: dict[str, Lease]) -> None:
        """Take every link as it is now, and bring ours to what they should have."""
        links = {link.index: link for link in self._netlink.links()}
        for index in self._managed.keys() - links.keys():
            self._managed.pop(index).close()
        for link in sorted(links.values(), key=lambda link: link.index):
            self._take(link, leases.get(link.name))
        self._certain = False
        present = [managed.interface for managed in self._managed.values()]
        awaiting = any(interface not in present for interface in self._interfaces if interface not in _DEFAULT)
        monitor.narrow(self._monitor, self._managed, self._netlink.port, awaiting=awaiting)
        self.changed.set()

    def _take(self, link: Link, lease: Lease | None) -> None:
        interface = self._interface_of(link)
        managed = self._managed.get(link.index)
        if managed and (managed.interface, managed.link.name, managed.link.mac) != (interface, link.name, link.mac):
            self._managed.pop(link.index).close()
            lease, managed = managed.lease, None
        if managed is None and interface:
            managed = self._managed[link.index] = Managed(self._netlink, link, interface, lease, self.changed)
        if managed:
            managed.update(link, certain=self._certain)
            managed.reconcile()


async def _publish(network: Network, connection: Connection) -> None:
    """Tell PID 1 each state that differs from the last."""
    told: NetworkState | None = None
    while True:
        await network.changed.wait()
        network.changed.clear()
        state = network.state()
        network.clock.use(state["ntp"])
        if state != told:
            told = state
            await connection.notify("state", state)


def _fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An error that nothing handles ends the worker: PID 1 starts a fresh one."""
    log.error(context["message"], exc_info=context.get("exception"))
    os._exit(1)


async def serve(link: Connection) -> None:
    """Run until PID 1 closes its end."""
    asyncio.get_running_loop().set_exception_handler(_fail)
    with closing(Network(link.kept.pop() if link.kept else None)) as network:
        link.handle("configure", network.configure)
        link.handle("links", network.links)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_publish(network, link)),
                group.create_task(network.clock.run(partial(link.notify, "time"))),
            ]
            await link.serve(network.rest)
            for task in tasks:
                task.cancel()
