"""What a DHCP server grants, judged: a reply becomes a Lease, or is refused with a reason that a person can read."""

import re
from collections import defaultdict
from collections.abc import Sequence
from socket import inet_ntoa
from typing import NamedTuple

from initd.network.packet import Message, Option, RefusedError

SHORTEST = 5  # seconds; renewing more often than every two seconds would be a loop
SMALLEST_MTU = 576  # RFC 791: what every host must accept; less is an attack or a typing error
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")


class Lease(NamedTuple):
    """One granted address, with its prefix length; times are seconds since boot, a route is destination and gateway."""

    address: str
    server: str
    obtained: float
    renew: float
    rebind: float
    expires: float
    routes: Sequence[tuple[str, str | None]] = ()
    dns: Sequence[str] = ()
    ntp: Sequence[str] = ()
    hostname: str | None = None
    mtu: int | None = None

    @property
    def host(self) -> str:
        return self.address.partition("/")[0]


def judge(message: Message, requested: float) -> Lease:
    """The lease in an OFFER or ACK to a request sent at `requested` (the lease runs from there: RFC 2131 4.4.1).

    Raises RefusedError.
    """
    options = defaultdict(bytes, message.options)
    server = options[Option.SERVER_ID]
    if len(server) != 4 or not any(server):
        raise RefusedError("it names no server")
    seconds = _number(options[Option.LEASE_TIME], 4)
    if seconds < SHORTEST:
        raise RefusedError(f"its lease time is {seconds} s, at least {SHORTEST} are needed")
    prefix = _prefix(options[Option.SUBNET_MASK])
    _check_address(message.yours, prefix)
    # T1 and T2: the server's own where they are in order, else half and seven eighths (RFC 2131 section 4.4.5).
    renew: float = _number(options[Option.RENEWAL_TIME], 4) or seconds * 0.5
    rebind: float = _number(options[Option.REBINDING_TIME], 4) or seconds * 0.875
    if not 1 < renew < rebind < seconds:
        renew, rebind = seconds * 0.5, seconds * 0.875
    mtu = _number(options[Option.MTU], 2)
    routers = _addresses(options[Option.ROUTER])
    return Lease(
        address=f"{inet_ntoa(message.yours)}/{prefix}",
        server=inet_ntoa(server),
        obtained=requested,
        renew=requested + renew,
        rebind=requested + rebind,
        expires=requested + seconds,
        # RFC 3442: option 121 replaces option 3, of which the first router counts.
        routes=_classless(options[Option.CLASSLESS_ROUTES]) or tuple(("0.0.0.0/0", via) for via in routers[:1]),
        dns=_addresses(options[Option.DNS]),
        ntp=_addresses(options[Option.NTP]),
        hostname=_host_name(options[Option.HOST_NAME]),
        mtu=mtu if mtu >= SMALLEST_MTU else None,
    )


def _number(value: bytes, size: int) -> int:
    """The value of an option that has `size` bytes; 0 for one that is not there or torn."""
    return int.from_bytes(value, "big") if len(value) == size else 0


def _prefix(mask: bytes) -> int:
    if len(mask) != 4:
        raise RefusedError("it has no subnet mask")
    bits = f"{int.from_bytes(mask, 'big'):032b}"
    if "01" in bits:
        raise RefusedError(f"{inet_ntoa(mask)} is no subnet mask")
    if not any(mask):
        raise RefusedError("its subnet is the whole internet (/0)")
    return bits.count("1")


def _check_address(address: bytes, prefix: int) -> None:
    """Only an address that one host can have: no network, broadcast, loopback, multicast or reserved one."""
    text = inet_ntoa(address)
    if address[0] in (0, 127) or address[0] >= 224:
        raise RefusedError(f"{text} is no host's address")
    hosts = (1 << (32 - prefix)) - 1
    if prefix < 31 and int.from_bytes(address, "big") & hosts in (0, hosts):
        raise RefusedError(f"{text} is the network's or the broadcast address of its /{prefix}")


def _addresses(value: bytes) -> tuple[str, ...]:
    """A list of addresses; what cannot be a server's is left out, and so is a torn end."""
    parts = (value[at : at + 4] for at in range(0, len(value) - 3, 4))
    return tuple(dict.fromkeys(inet_ntoa(part) for part in parts if part[0] and part[0] < 224))


def _classless(value: bytes) -> tuple[tuple[str, str | None], ...]:
    """Option 121: for each route the prefix length, as much of the destination as that has, the gateway or zeros."""
    routes: dict[str, str | None] = {}
    while value:
        width = value[0]
        octets = (width + 7) // 8
        destination, gateway = value[1 : 1 + octets], value[1 + octets : 5 + octets]
        if width > 32 or len(gateway) < 4:
            return ()  # a torn list is no list: half of it could route everything to nowhere
        network = int.from_bytes(destination.ljust(4, b"\0"), "big") >> (32 - width) << (32 - width)
        text = f"{inet_ntoa(network.to_bytes(4, 'big'))}/{width}"
        routes.setdefault(text, inet_ntoa(gateway) if any(gateway) else None)
        value = value[5 + octets :]
    return tuple(routes.items())


def _host_name(value: bytes) -> str | None:
    text = value.rstrip(b"\0").decode("ascii", "replace")
    return text if len(text) <= 253 and _HOST_NAME.fullmatch(text) else None
