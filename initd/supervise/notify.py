"""The receiving end of sd_notify(3): one datagram socket a service, heard only from the service's main process.

Source: systemd's sd_notify(3), "Notes" (the protocol is declared stable there).
"""

import os
import struct
from _socket import AF_UNIX, CMSG_LEN, MSG_TRUNC, SO_PASSCRED, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812 the C type: importing `socket` costs the start of containerd
from collections.abc import Callable

from initd import log

DATAGRAM_BYTES = 4096
BATCH = 32
VALUES = {"READY": ("1",), "STOPPING": ("1",), "WATCHDOG": ("1", "trigger")}
NUMBERS = frozenset({"MAINPID", "ERRNO", "WATCHDOG_USEC", "EXTEND_TIMEOUT_USEC"})
DIGITS = 20  # of an unsigned 64-bit number
_CREDENTIALS = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid
CREDENTIALS_BYTES = CMSG_LEN(_CREDENTIALS.size)


class NotifySocket:
    """Receives for one service; `path` is what its NOTIFY_SOCKET says, `kept` the socket's descriptor if there is one
    already. Raises OSError if it cannot be made.
    """

    def __init__(self, path: str, kept: int = -1) -> None:
        self.path = path
        self.refused = 0
        if kept >= 0:
            self._socket = Socket(fileno=kept)
            return
        self._socket = Socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        self._socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        if os.path.lexists(path):
            os.unlink(path)
        self._socket.bind(path)
        os.chmod(path, 0o600)  # services are root; a stranger must not fill its queue, nor pass descriptors to close

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, is_main: Callable[[int], bool], accept: Callable[[dict[str, str]], str | None]) -> None:
        """Hand each waiting message of the main process to `accept`; at most `BATCH` a turn. Never blocks.

        `is_main` is asked for each sender anew: a message may name another main process. What `accept` returns is
        logged as what is wrong with the message. Descriptors that were passed find no room: the kernel closes them,
        which is also the answer to BARRIER=1, since what came before it has been handled.
        """
        for _ in range(BATCH):
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_BYTES, CREDENTIALS_BYTES)
            except OSError:
                return  # nothing is left, or the sender is gone
            sender = _CREDENTIALS.unpack(ancillary[0][2])[0] if ancillary else 0
            if not is_main(sender):
                problem: str | None = f"pid {sender} is not the main process"
            elif flags & MSG_TRUNC or (message := parse(data)) is None:
                problem = "no assignments in UTF-8, or too long"
            else:
                problem = accept(message)
            if problem is not None:
                self.refused += 1
                if self.refused & (self.refused - 1) == 0:  # the first, second, fourth, eighth and so on
                    log.warning(f"{self.path}: message ignored", reason=problem, count=self.refused)


def parse(data: bytes) -> dict[str, str] | None:
    """The assignments (`KEY=value` a line) of one message that mean something here; None if it is no such message.

    BARRIER=1 is not among them: it asks for nothing but its descriptor's end, and makes void what stands beside it.
    """
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        return None
    pairs = [(key, value) for key, separator, value in (line.partition("=") for line in lines) if separator]
    if not pairs:
        return None
    return {} if ("BARRIER", "1") in pairs else {key: value for key, value in pairs if _is_known(key, value)}


def _is_known(key: str, value: str) -> bool:
    if key in NUMBERS:
        return value.isascii() and value.isdecimal() and len(value) <= DIGITS
    return value in VALUES.get(key, ()) or (key == "STATUS" and value.isprintable())
