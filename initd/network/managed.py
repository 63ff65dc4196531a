"""One link that initd owns: its DHCP client, its timer, and what it has against what it should have."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

import structlog

from initd.api.types import LinkInfo
from initd.network.dhcp import Client, Send
from initd.network.lease import Lease
from initd.network.netlink import Netlink, boottime
from initd.network.plan import Address, Interface, Item, Link, mtu, operations, wanted
from initd.network.sockets import Transport

_ROUNDS = 4  # removing an address takes others with it, so what was done is checked; a few times, not for ever
log = structlog.get_logger()


class Managed:
    """A link that is there, with the configuration's wishes for it. `changed` is called when its state may differ."""

    def __init__(
        self, netlink: Netlink, link: Link, interface: Interface, lease: Lease | None, changed: asyncio.Event
    ) -> None:
        self.interface = interface
        self.link = replace(link, running=False)  # until `update`
        self.items: list[Item] = []
        self.errors: list[str] = []
        self._netlink = netlink
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._transport = Transport(self._loop, link.name, self._receive)
        self.client: Client | None = None
        self._applied = lease
        if interface.dhcp and link.mac:
            self.client = Client(bytes.fromhex(link.mac.replace(":", "")), lease)
            self._schedule()  # a lease that was handed over ends on time even if no carrier ever comes

    @property
    def lease(self) -> Lease | None:
        return self.client.lease if self.client else None

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._transport.close()

    def forget(self) -> None:
        """The configuration does not name the link any more: take away what was given."""
        self.close()
        self.client, self.interface = None, Interface()
        self.reconcile()

    def update(self, link: Link, *, certain: bool = False) -> None:
        """The link is like this now; the DHCP client follows its carrier, before anything else is read: this is on the
        boot's critical path. certain: a lease that was handed over needs no question.
        """
        was, self.link = self.link, link
        if self.client is None or link.running == was.running:
            return
        if not link.running:
            self._send(self.client.stop())
        elif certain and self.client.resume(boottime()):
            self._schedule()
        else:
            self._send(self.client.start(boottime()))

    def reconcile(self) -> None:
        """Bring the kernel to what is wanted, and look at what it then has."""
        self.errors = []
        index = self.link.index
        size = mtu(self.interface, self.lease)
        if not self.link.up or size not in (None, self.link.mtu):
            self._try("bringing the link up", self._set_link, size)
        want = wanted(self.interface, self.lease, index)  # carrier may have shown that the lease is over
        try:
            for _ in range(_ROUNDS):
                self.items = self._netlink.items(index)[index]
                todo = operations(self.items, want)
                for add, item in todo:
                    text = f"{'adding' if add else 'removing'} {type(item).__name__.lower()} {item.text}"
                    self._try(text, self._netlink.change, index, item, add)
                if not todo or self.errors:
                    break
        except OSError as error:
            self.errors.append(error.strerror or str(error))
        self._changed.set()

    def _set_link(self, mtu: int | None) -> None:
        self._netlink.set_link(self.link.index, mtu)
        self.update(self._netlink.link(self.link.index))  # virtio has carrier at once: no wait for the news

    def _try(self, text: str, change: Callable[..., None], *arguments: object) -> None:
        try:
            change(*arguments)
        except OSError as error:
            self.errors.append(f"{text}: {error.strerror}")
            log.warning("link change failed", link=self.link.name, change=text, error=error.strerror)

    def _receive(self, payload: bytes) -> None:
        if self.client:
            self._send(self.client.receive(payload, boottime()))

    def _due(self) -> None:
        if self.client:
            self._send(self.client.timer(boottime()))
            self._changed.set()  # the reason says for how long there was no answer

    def _send(self, messages: list[Send]) -> None:
        """Send what the client wants sent, and do what else its new state asks for."""
        try:
            for message in messages:
                self._transport.send(message)
        except OSError as error:  # as good as a lost packet: the client tries again at its deadline
            log.warning("DHCP message not sent", link=self.link.name, error=error.strerror)
        if self.client and not self.client.listening:
            self._transport.close()
        self._schedule()
        before, self._applied = self._applied, self.lease
        if self.lease == before:
            return
        if self.client and self.lease is None:
            log.warning("lease lost", link=self.link.name, reason=self.client.problem)
        elif self.lease and (before is None or before.address != self.lease.address):
            log.info("lease obtained", link=self.link.name, address=self.lease.address, server=self.lease.server)
        self.reconcile()

    def _schedule(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self.client and self.client.deadline is not None:
            self._timer = self._loop.call_later(max(0.0, self.client.deadline - boottime()), self._due)

    @property
    def reasons(self) -> list[str]:
        """Why the link has not all that it should, for a person to read; empty if it has."""
        name = self.link.name
        if not self.link.running:
            return [f"{name}: no carrier" if self.link.up else f"{name}: the link is down"]
        found = [f"{name}: {error}" for error in self.errors]
        if self.client and self.client.lease is None:
            waited = int(boottime() - self.client.since)
            found.append(f"{name}: {self.client.problem or f'no DHCP answer for {waited} s'}")
        return found

    @property
    def address(self) -> str | None:
        """The link's primary IPv4 address, without its prefix length."""
        texts = [self.lease.address] if self.lease else self.interface.addresses
        return next((text.partition("/")[0] for text in texts if ":" not in text), None)


def link_info(link: Link, items: Iterable[Item], *, managed: bool) -> LinkInfo:
    fields = {name: value for name, value in vars(link).items() if name not in ("running", "physical")}
    addresses = [item.text for item in items if isinstance(item, Address)]
    routes = [item.text for item in items if not isinstance(item, Address)]
    return cast("LinkInfo", {**fields, "addresses": addresses, "routes": routes, "managed": managed})
