"""Who may do what: the role of a peer on the API's Unix socket.

The kernel says who connected (SO_PEERCRED, unix(7)); the peer's cgroup says whether that is a pod. A process in a pod
has no role whatever its uid, root included: a pod that mounts the socket must not own the node. Outside of pods uid 0
is admin, and everyone else has what the configuration grants, or no role at all.
"""

import os
import signal
import socket
import struct
from collections.abc import Iterable

from initd.api.registry import Peer, Role
from initd.config.schema import RoleConfig

_SO_PEERPIDFD = 77  # Linux 6.5, asm-generic/socket.h; the socket module has no name for it
_CREDENTIALS = struct.Struct("iII")  # struct ucred


def identify(connection: socket.socket, roles: Iterable[RoleConfig]) -> Peer:
    """Return who is at the other end of a Unix socket, as of its connect(2). Raises OSError if that is not known."""
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    cgroup = _cgroup_of(connection, pid)
    if cgroup is None:
        return Peer(pid, uid, gid, Role.NONE, f"uid {uid} pid {pid} (gone)")
    in_pod = is_pod(cgroup)
    text = f"uid {uid} pid {pid}{' in a pod' if in_pod else ''}"
    return Peer(pid, uid, gid, role(uid, gid, roles, in_pod=in_pod), text)


def role(uid: int, gid: int, roles: Iterable[RoleConfig], *, in_pod: bool) -> Role:
    """Decide what a peer may do; gid is its primary group."""
    if in_pod:
        return Role.NONE
    if uid == 0:
        return Role.ADMIN
    granted = (Role[entry.role.upper()] for entry in roles if uid == entry.uid or gid == entry.gid)
    return max(granted, default=Role.NONE)


def is_pod(cgroup: str) -> bool:
    """Say whether /proc/PID/cgroup (cgroups(7)) names a cgroup of the kubelet's, with either of its cgroup drivers."""
    paths = [line.split(":", 2)[-1] for line in cgroup.splitlines()]
    return any(path.lstrip("/").partition("/")[0] in ("kubepods", "kubepods.slice") for path in paths)


def _cgroup_of(connection: socket.socket, pid: int) -> str | None:
    """Read a peer's cgroups; None if it has ended, since its pid may be another process by now."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except ProcessLookupError:
        return None
    except OSError:  # a kernel without it: the pid alone has to do
        pidfd = -1
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            text = file.read()
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, 0)
    except OSError:
        return None
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return text
