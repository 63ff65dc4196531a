"""What a link should have, and the operations that bring it there: no I/O.

Only what carries initd's own protocol number is ever changed or removed, so the addresses and routes that a CNI plugin
or a load balancer puts on the same link are safe.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from initd.network.lease import Lease

DRIFT = 5.0  # seconds; an address whose lifetime is off by more gets a new one
GATEWAY_METRIC = 100  # plus the link's index, so that two links' default routes do not replace each other
DHCP_METRIC = 1000


@dataclass(frozen=True)
class Link:
    """A link as the kernel reports it, by the names of api.types.LinkInfo; `running`: packets can be sent."""

    index: int
    name: str
    kind: str
    mac: str | None
    mtu: int
    up: bool
    carrier: bool
    running: bool
    physical: bool


@dataclass(frozen=True)
class Interface:
    """What the configuration asks of one link, by its names (msgspec would cost this process 5 MB); a name or hardware
    address of None means every Ethernet link.
    """

    name: str | None = None
    mac: str | None = None
    dhcp: bool = False
    addresses: Sequence[str] = ()
    gateway: str | None = None
    mtu: int | None = None
    routes: Sequence[Mapping[str, Any]] = ()

    def matches(self, link: Link) -> bool:
        if self.name is None and self.mac is None:
            return link.physical
        return self.name == link.name if self.name else self.mac == link.mac


@dataclass(frozen=True)
class Address:
    """An address with its prefix ("10.0.2.15/24"); `expires` in seconds since boot, None means never."""

    text: str
    expires: float | None = None
    ours: bool = True


@dataclass(frozen=True)
class Route:
    """A route of the main table; `onlink` if the gateway is in no subnet of the link."""

    to: str
    via: str | None
    metric: int
    source: str | None = None
    ours: bool = True

    @property
    def text(self) -> str:
        """As ip(8) would write it."""
        return " ".join(filter(None, (self.to, self.via and f"via {self.via}", f"metric {self.metric}")))


Item = Address | Route


def wanted(interface: Interface, lease: Lease | None, index: int) -> list[Item]:
    """The addresses and routes that the configuration and the lease together ask of the link with that index."""
    addresses = [Address(normal(text)) for text in interface.addresses]
    routes = []
    for row in interface.routes:
        # The kernel's own default where no metric (for IPv6, where 0 means the default too) is given.
        metric = row.get("metric") or (1024 if ":" in row["to"] else 0)
        routes.append(Route(normal(row["to"]), _plain(row["via"]) if row.get("via") else None, metric))
    if interface.gateway:
        everywhere = "::/0" if ":" in interface.gateway else "0.0.0.0/0"
        routes.append(Route(everywhere, _plain(interface.gateway), GATEWAY_METRIC + index))
    if lease:
        addresses.append(Address(lease.address, lease.expires))
        routes += [Route(to, via, DHCP_METRIC + index, source=lease.host) for to, via in lease.routes]
    unique = {(route.to, route.metric): route for route in reversed(routes)}  # the kernel has one of each
    return [*dict.fromkeys(addresses), *reversed(unique.values())]


def mtu(interface: Interface, lease: Lease | None) -> int | None:
    """The configuration's goes before the lease's."""
    return interface.mtu or (lease.mtu if lease else None)


def operations(there: Collection[Item], want: Collection[Item]) -> list[tuple[bool, Item]]:
    """What to add (True) or replace and what to remove, in order: removals first, because removing an address takes
    those of its subnet with it that were added later. Empty if the kernel already has everything.
    """
    keys = {_key(item) for item in want}
    return [
        *((False, item) for item in there if item.ours and _key(item) not in keys),
        *((True, item) for item in want if not any(_serves(item, other) for other in there)),
    ]


def _key(item: Item) -> str | Route:
    return item.text if isinstance(item, Address) else item


def _serves(want: Item, item: Item) -> bool:
    """Whether what the kernel has is what it should have; an address with about the lifetime that it should have."""
    if isinstance(want, Route) or isinstance(item, Route):
        return want == item
    if want.expires is None or item.expires is None:
        return want.text == item.text and want.expires == item.expires
    return want.text == item.text and abs(want.expires - item.expires) <= DRIFT


def family(text: str) -> int:
    return AF_INET6 if ":" in text else AF_INET


def _plain(address: str) -> str:
    return inet_ntop(family(address), inet_pton(family(address), address))


def normal(text: str) -> str:
    """An address with a prefix length as the kernel would write it."""
    address, _, prefix = text.partition("/")
    return f"{_plain(address)}/{prefix}"
