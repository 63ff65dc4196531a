"""The kernel's notifications about links, addresses and routes: only those that concern a link of ours wake us."""

import errno
import socket
from collections.abc import Collection
from socket import htonl, htons

from initd import bpf
from initd.bpf import Op
from initd.network import netlink

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses and routes
_RECEIVE_BUFFER = 1 << 20
_ATTRIBUTE = 0xFFFFF000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR: A = where the attribute X is found from A on, or 0
_LINK_HEADER, _IFLA_PARENT_DEV_NAME = 32, 56
_MOST_LINKS = 60  # more links than this and the jumps would not fit their byte


def listen() -> socket.socket:
    """A socket that hears all of them."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    sock.bind((0, _GROUPS))
    return sock


def narrow(sock: socket.socket, indexes: Collection[int], port: int, *, awaiting: bool) -> None:
    """Hear only of the links with these indexes and of new ones: physical ones, or any if a link that the configuration
    names is not there yet. What the socket with this port did itself is not news.
    """
    if len(indexes) <= _MOST_LINKS:
        bpf.attach(sock, program(indexes, port, awaiting=awaiting))


def drain(sock: socket.socket) -> bool:
    """Take the news as read; whether there were any. What a message says may be overtaken by the next one, or by what
    this process has done since, so the links are looked at as they are now.
    """
    news = False
    while True:
        try:
            sock.recv(1)
        except BlockingIOError:
            return news
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        news = True


def program(indexes: Collection[int], port: int, *, awaiting: bool) -> bytes:
    """The filter; netlink is in the machine's byte order, BPF loads in the network's."""
    ours = [Op(bpf.EQUAL, htonl(index), true="take") for index in indexes]
    return bpf.assemble(
        Op(bpf.LOAD_HALF, 4),  # nlmsg_type
        Op(bpf.EQUAL, htons(netlink.NEW_LINK), true="link"),
        Op(bpf.EQUAL, htons(netlink.DELETE_LINK), true="by index"),
        Op(bpf.EQUAL, htons(netlink.NEW_ROUTE), true="drop"),
        Op(bpf.LOAD_WORD, 12),  # nlmsg_pid: who asked for the change
        Op(bpf.EQUAL, htonl(port), true="drop"),
        Op(bpf.LOAD_HALF, 4),
        Op(bpf.EQUAL, htons(netlink.DELETE_ROUTE), false="by index"),
        Op(bpf.LOAD_BYTE, 21),  # rtm_protocol: only a route of ours is missed
        Op(bpf.EQUAL, netlink.PROTOCOL, true="take", false="drop"),
        "link",
        *([Op(bpf.RETURN, 0xFFFFFFFF)] if awaiting else []),
        Op(bpf.SET, _LINK_HEADER),
        Op(bpf.SET_X, _IFLA_PARENT_DEV_NAME),
        Op(bpf.LOAD_WORD, _ATTRIBUTE),
        Op(bpf.EQUAL, 0, false="take"),
        "by index",
        Op(bpf.LOAD_WORD, 20),  # ifi_index and ifa_index stand at the same place
        *ours,
        "drop",
        Op(bpf.RETURN, 0),
        "take",
        Op(bpf.RETURN, 0xFFFFFFFF),
    )
