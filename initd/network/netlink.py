"""rtnetlink(7): what the kernel has, how to change it, and its notifications.

pyroute2 writes and reads the messages. Its sockets are not used: they import ssl (10 MB), ctypes and threads, and
start requests of their own. Nor does its package's own __init__ run, which imports all of it. The kernel answers a
request before send(2) returns, so nothing is gained by waiting asynchronously.
"""

import errno
import importlib
import importlib.util
import os
import socket
import struct
import sys
import time
import types
from collections import defaultdict
from typing import Any

from initd.network.plan import Address, Item, Link, Route, family

PROTOCOL = 73  # marks our addresses and routes; no one else's number (iproute2's rt_protos)
LOOPBACK = 1  # the index of lo in every network namespace
_TIMEOUT = 5.0  # seconds; the kernel answers at once or never
_HEADER = struct.Struct("=IHHII")
ERROR, DONE = 2, 3
NEW_LINK, DELETE_LINK, GET_LINK = 16, 17, 18
NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
_REQUEST, _ACK, _DUMP, _CREATE_OR_REPLACE = 1, 4, 0x300, 0x500
_CAP_ACK, _EXT_ACK, _STRICT_CHECK, _SOL_NETLINK = 10, 11, 12, 270
_IFF_UP, _IFF_RUNNING, _IFF_LOWER_UP = 0x1, 0x40, 0x10000
_ARPHRD = {1: "ether", 772: "loopback"}
_MAIN_TABLE, _UNIVERSE, _LINK_SCOPE, _UNICAST, _ONLINK = 254, 0, 253, 1, 4
_FOREVER = 0xFFFFFFFF


def _messages() -> list[Any]:
    """pyroute2's message classes, without the package's __init__ and without multiprocessing, which its configuration
    imports for names that no message needs (12 of 20 ms).
    """
    spec = importlib.util.find_spec("pyroute2")
    if spec is None:
        raise ModuleNotFoundError("pyroute2 is not installed", name="pyroute2")
    sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)  # which is not executed
    stand_in = types.ModuleType("multiprocessing")
    vars(stand_in).update(Pipe=None, Queue=None, Process=None)
    real = sys.modules.setdefault("multiprocessing", stand_in)
    try:
        names = ("ifinfmsg", "ifaddrmsg", "rtmsg")
        return [getattr(importlib.import_module(f"pyroute2.netlink.rtnl.{name}"), name) for name in names]
    finally:
        if real is stand_in:
            del sys.modules["multiprocessing"]


_LinkMessage, _AddressMessage, _RouteMessage = _messages()


def boottime() -> float:
    """Seconds since boot, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Netlink:
    """The socket for requests. Methods raise OSError with the kernel's own explanation where it gives one."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        # Errors with a text and without the request; dumps that heed their filters.
        for option in (_EXT_ACK, _CAP_ACK, _STRICT_CHECK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.settimeout(_TIMEOUT)
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def links(self) -> list[Link]:
        return [_link(message) for message in self._ask(_LinkMessage(), GET_LINK, _DUMP)]

    def link(self, index: int) -> Link:
        return _link(self._ask(_fill(_LinkMessage(), index=index), GET_LINK)[0])

    def items(self, index: int = 0) -> defaultdict[int, list[Item]]:
        """The main table's routes and the addresses, in this order, of one link, or of all (0), by link index."""
        found: defaultdict[int, list[Item]] = defaultdict(list)
        only = [["RTA_OIF", index]] if index else []
        for kind in (socket.AF_INET, socket.AF_INET6):
            query = _fill(_RouteMessage(), family=kind, table=_MAIN_TABLE, attrs=[*only])
            for message in self._ask(query, GET_ROUTE, _DUMP):
                if message["table"] == _MAIN_TABLE and message["type"] == _UNICAST:
                    found[message.get_attr("RTA_OIF") or 0].append(_route(message))
        for message in self._ask(_fill(_AddressMessage(), index=index), GET_ADDRESS, _DUMP):
            found[message["index"]].append(_address(message))
        return found

    def set_link(self, index: int, mtu: int | None) -> None:
        """Bring a link up and set its MTU, where one is given."""
        attributes = [["IFLA_MTU", mtu]] if mtu else []
        self._ask(_fill(_LinkMessage(), index=index, flags=_IFF_UP, change=_IFF_UP, attrs=attributes), NEW_LINK)

    def change(self, index: int, what: Item, add: bool) -> None:
        """Add or replace, or remove, an address or route of a link. What is gone already needs no removal."""
        if isinstance(what, Address):
            message, kind = _address_message(index, what), NEW_ADDRESS if add else DELETE_ADDRESS
        else:
            message, kind = _route_message(index, what), NEW_ROUTE if add else DELETE_ROUTE
        try:
            self._ask(message, kind, _CREATE_OR_REPLACE if add else 0)
        except OSError as error:
            if add or error.errno not in (errno.ESRCH, errno.EADDRNOTAVAIL):
                raise

    def _ask(self, message: Any, kind: int, flags: int = 0) -> list[Any]:
        """Send a request and return what it is answered with; only attributes that are asked for are then decoded."""
        self._sequence += 1
        flags |= _REQUEST | (0 if flags & _DUMP == _DUMP else _ACK)  # so that each answer has an end
        message["header"].update(type=kind, flags=flags, sequence_number=self._sequence, pid=0)
        message.encode()
        self._socket.send(message.data)
        answers: list[Any] = []
        while True:
            data = self._socket.recv(65536)
            while data:
                length, kind, _, sequence, _ = _HEADER.unpack_from(data)
                answer, data = data[:length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue  # the rest of an answer that a timeout made us give up
                if kind == ERROR:
                    _raise(answer)
                if kind in (ERROR, DONE):
                    return answers
                answers.append(type(message)(answer))
                answers[-1].decode()


def _raise(data: bytes) -> None:
    """Raise what an error message says, if it is one; the kernel's text, if any, follows the request's header."""
    code = -int(struct.unpack_from("=i", data, 16)[0])
    if code:
        size, kind = struct.unpack_from("=HH", data.ljust(40, b"\0"), 36)
        text = data[40 : 36 + size].rstrip(b"\0").decode(errors="replace") if kind == 1 else ""  # NLMSGERR_ATTR_MSG
        raise OSError(code, ": ".join(filter(None, (os.strerror(code), text))))


def _fill(message: Any, **fields: Any) -> Any:
    message.update(fields)
    return message


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    flags = message["flags"]
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        kind=(info and info.get_attr("IFLA_INFO_KIND")) or _ARPHRD.get(message["ifi_type"], "other"),
        mac=message.get_attr("IFLA_ADDRESS"),
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        running=flags & (_IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP) == _IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP,
        physical=message["ifi_type"] == 1 and message.get_attr("IFLA_PARENT_DEV_NAME") is not None,
    )


def _address(message: Any) -> Address:
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    valid = message.get_attr("IFA_CACHEINFO")["ifa_valid"]
    expires = None if valid == _FOREVER else boottime() + valid
    return Address(f"{text}/{message['prefixlen']}", expires, ours=message.get_attr("IFA_PROTO") == PROTOCOL)


def _route(message: Any) -> Route:
    everywhere = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
    return Route(
        to=f"{message.get_attr('RTA_DST') or everywhere}/{message['dst_len']}",
        via=message.get_attr("RTA_GATEWAY"),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        source=message.get_attr("RTA_PREFSRC"),
        ours=message["proto"] == PROTOCOL,
    )


def _address_message(index: int, address: Address) -> Any:
    text, _, prefix = address.text.partition("/")
    lifetime = _FOREVER if address.expires is None else max(1, min(_FOREVER - 1, round(address.expires - boottime())))
    attributes = [
        ["IFA_LOCAL", text],
        ["IFA_ADDRESS", text],
        ["IFA_CACHEINFO", {"ifa_preferred": lifetime, "ifa_valid": lifetime}],
        ["IFA_PROTO", PROTOCOL],
    ]
    return _fill(_AddressMessage(), family=family(text), prefixlen=int(prefix), index=index, attrs=attributes)


def _route_message(index: int, route: Route) -> Any:
    network, _, prefix = route.to.partition("/")
    attributes = {
        "RTA_OIF": index,
        "RTA_PRIORITY": route.metric,
        "RTA_DST": network if int(prefix) else None,
        "RTA_GATEWAY": route.via,
        "RTA_PREFSRC": route.source,
    }
    message = _fill(_RouteMessage(), family=family(network), dst_len=int(prefix), type=_UNICAST, proto=PROTOCOL)
    message["table"], message["scope"] = _MAIN_TABLE, _UNIVERSE if route.via or ":" in network else _LINK_SCOPE
    message["flags"] = _ONLINK if route.via else 0  # the gateway need not be in a subnet of the link
    message["attrs"] = [[name, value] for name, value in attributes.items() if value]
    return message
