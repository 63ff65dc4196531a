"""Networks for a machine: QEMU's user network (10.0.2.0/24, with DHCP, DNS and a way out), a wire that nobody answers
on yet, or a segment that machines share.

The silent wire is a port of an emulated hub. Its DHCP server can be plugged into the hub while the guest runs, which a
backend that belongs to the card cannot: a card's backend is fixed when the card is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# "TCP[HOST_FORWARD]  17       127.0.0.1 39411       10.0.2.15  8080     0     0", as HMP's `info usernet` has it
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)\s")


@dataclass(frozen=True)
class Segment:
    """One network card on an Ethernet segment that every machine with the same `port` shares: packets to a multicast
    group on the host's loopback. station, 1 to 254, is the card's last byte of address, its own on the segment.
    """

    port: int
    station: int

    def arguments(self, index: int) -> list[str]:
        """Return QEMU's arguments for this card, whose id is nicINDEX."""
        mac = f"52:54:00:12:35:{self.station:02x}"
        netdev = f"socket,id=net{index},mcast=230.0.0.1:{self.port},localaddr=127.0.0.1"
        return ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net{index},id=nic{index},mac={mac},romfile="]


@dataclass(frozen=True)
class Network:
    """One network card and what it is connected to.

    forward: TCP ports of the guest's address 10.0.2.15 that the host reaches at a free port of 127.0.0.1
    (Machine.port). restrict: the guest reaches nothing but the network's own DHCP and DNS. dhcp: False for a wire
    without any answer until Machine.start_dhcp.
    """

    forward: tuple[int, ...] = ()
    restrict: bool = False
    dhcp: bool = True

    def arguments(self, index: int) -> list[str]:
        """Return QEMU's arguments for this card, whose id is nicINDEX."""
        # An option ROM would make firmware try a network boot, which costs seconds.
        card = ["-device", f"virtio-net-pci,netdev=net{index},id=nic{index},mac={self.mac(index)},romfile="]
        if not self.dhcp:
            # A hub without a second port takes no packets: the card's queue would stall, and not only until there is
            # one.
            sink = ["-netdev", f"hubport,id=sink{index},hubid={index}"]
            return ["-netdev", f"hubport,id=net{index},hubid={index}", *sink, *card]
        forwards = "".join(f",hostfwd={rule}" for rule in self._rules())
        return ["-netdev", f"user,id=net{index},restrict={'on' if self.restrict else 'off'}{forwards}", *card]

    def plug(self, index: int) -> list[tuple[str, Mapping[str, object]]]:
        """Return the QMP commands that bring the user network to a silent wire."""
        user = {
            "type": "user",
            "id": f"user{index}",
            "restrict": self.restrict,
            "hostfwd": [{"str": rule} for rule in self._rules()],
        }
        return [
            ("netdev_add", user),
            ("netdev_add", {"type": "hubport", "id": f"plug{index}", "hubid": index, "netdev": f"user{index}"}),
        ]

    @staticmethod
    def mac(index: int) -> str:
        """Return the card's address: a fixed one, so that leases and names are the same in every run."""
        return f"52:54:00:12:34:{0x56 + index:02x}"

    def _rules(self) -> list[str]:
        # Port 0: QEMU itself takes a free one, so that nothing else can take it between a look and the use.
        return [f"tcp:127.0.0.1:0-:{port}" for port in self.forward]


def forwards(usernet: str) -> dict[int, int]:
    """Return {guest port: host port} from what HMP's `info usernet` printed."""
    return {int(guest): int(host) for host, guest in _FORWARD.findall(usernet)}
