"""Bring the API up: on the socket that PID 1 has been listening on, and on the lines that the command line opens."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

from initd import log
from initd.api import access, serial
from initd.api.methods import node as node_methods
from initd.api.registry import METHODS, Peer, Role
from initd.api.server import Server
from initd.api.session import Api

if TYPE_CHECKING:
    from initd.node import Node

VSOCK_PORT = 1024


async def serve(node: Node) -> None:
    """Answer from now on. A line that cannot be had is logged and tried again: the Unix socket alone will do."""
    api = Api(node, log, METHODS, {})
    if node.listener is not None:
        identify = partial(access.identify, grants=_grants(node))
        await Server(api, identify).start(socket.socket(fileno=node.listener))
    for name, begin in (("serial", _serial), ("vsock", _vsock)):
        role = _role(node, f"initd.api.{name}")
        if role is not None:
            node.spawn_task(partial(begin, api, role), f"API on {name}")


async def _serial(api: Api, role: Role) -> None:
    device = serial.find_port()
    if device is None:
        raise LookupError(f"no virtio-serial port {serial.PORT_NAME}")
    port = serial.Port(api, serial.open_port(device), role, node_methods.version_info(api.node.boot_id))
    try:
        raise await port.lost
    finally:
        port.shut()


async def _vsock(api: Api, role: Role) -> None:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
    await Server(api, lambda connection: Peer(-1, -1, -1, role, f"vsock {connection.getpeername()}")).start(listener)


def _role(node: Node, key: str) -> Role | None:
    name = node.command_line.get(key)
    if name is None:
        return None
    try:
        return Role[name.upper()]
    except KeyError:
        log.error(f"{key}: found {name!r}, expected reader, operator or admin")
        return None


def _grants(node: Node) -> access.Grants:
    roles = node.config.api.roles if node.config is not None else ()
    users = {entry.uid: Role[entry.role.upper()] for entry in roles if entry.uid is not None}
    groups = {entry.gid: Role[entry.role.upper()] for entry in roles if entry.gid is not None}
    return access.Grants(users, groups)
