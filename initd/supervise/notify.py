"""The receiving end of sd_notify(3): one datagram socket a service, heard only from the service's main process.

Source: systemd's sd_notify(3), "Notes" (the protocol is declared stable there).
"""

from __future__ import annotations

import os
import struct
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
)
from _socket import socket as Socket  # noqa: N812 the C type: importing `socket` costs the start of containerd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SCM_CREDENTIALS = 2
DATAGRAM_BYTES = 4096
BATCH = 32
_CREDENTIALS = struct.Struct("3i")


class NotifySocket:
    """Receives for one service; `path` is what its NOTIFY_SOCKET says. Raises OSError if it cannot be made."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = Socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        self._socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        if os.path.lexists(path):
            os.unlink(path)
        self._socket.bind(path)
        os.chmod(path, 0o600)  # services are root; a stranger must not fill its queue, nor pass descriptors to close
        self.refused = 0

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def receive(self, main: int | None, accept: Callable[[dict[str, str]], None]) -> None:
        """Hand each waiting message of the process `main` to `accept`; at most `BATCH` a turn. Never blocks."""
        for _ in range(BATCH):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(DATAGRAM_BYTES, 256, MSG_CMSG_CLOEXEC)
            except OSError:
                return  # nothing is left, or the sender is gone
            sender = None
            for level, kind, payload in ancillary:
                if level == SOL_SOCKET and kind == SCM_CREDENTIALS:
                    sender = _CREDENTIALS.unpack_from(payload)[0]
                elif level == SOL_SOCKET and kind == SCM_RIGHTS:
                    # BARRIER=1 passes a pipe and waits until we close it; any other descriptor is none of ours.
                    for (descriptor,) in struct.iter_unpack("i", payload[: len(payload) // 4 * 4]):
                        os.close(descriptor)
            if sender is None or sender != main:
                self.refused += 1
                continue
            accept(parse(data))


def parse(data: bytes) -> dict[str, str]:
    """The assignments of one message, `KEY=value` a line; other lines are passed over, as the protocol asks."""
    lines = (line.partition("=") for line in data.decode(errors="replace").split("\n"))
    return {key: value for key, separator, value in lines if separator}
