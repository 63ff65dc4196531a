"""A client of the API: synchronous, small, the same for initctl, tests and scripts (README.md has an example).

Calls may be made while streams run: what comes for another call is kept for it.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from initd.api import protocol
from initd.api.protocol import ApiError, Code, Message, Notification, ProtocolError, Request, Response, encode

DEFAULT_SOCKET = "/run/initd/api.sock"
_LIMITS = protocol.Limits(message=4 << 20)  # a node sends at most a quarter of it


class Client:
    """A connection to a node's API.

    address is a path, unix:///PATH or vsock://CID[:PORT]. timeout, in seconds, bounds connecting, and each call that
    gives none of its own. Raises ValueError for what is no address, ConnectionError (with what to do) if none answers.
    """

    def __init__(self, address: str = DEFAULT_SOCKET, timeout: float = 10.0) -> None:
        self.address = address
        self._timeout = timeout
        self._decoder = protocol.Decoder(_LIMITS)
        self._msgid = 0
        self._inboxes: dict[int, deque[Notification | Response]] = {}  # of the calls that run, by msgid
        self._socket = _connect(address, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the node ends the calls that still run."""
        self._socket.close()

    def call(self, method: str, *params: object, timeout: float | None = None) -> Any:
        """Call a method and return its result.

        Raises ApiError: the node's, or DEADLINE_EXCEEDED after timeout seconds; ConnectionError if the node goes.
        """
        seconds = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        with self._running(method, params) as inbox:
            while not isinstance(message := self._next(inbox, deadline), Response):
                if message is None:
                    raise ApiError(Code.DEADLINE_EXCEEDED, f"{method}: no answer in {seconds:g} s")
        return _result(message)

    def stream(self, method: str, *params: object, idle: float | None = None) -> Generator[Any, None, Any]:
        """Yield the items of a streaming method as they come, until the node ends it or the generator is closed.

        The generator's own result is the call's: None, or that of a method which does not stream after all.
        With idle, yield None whenever nothing came for that many seconds. {"dropped": n} stands for n items that this
        client was too slow for. Raises like call().
        """
        with self._running(method, params) as inbox:
            while True:
                message = self._next(inbox, None if idle is None else time.monotonic() + idle)
                if isinstance(message, Response):
                    return _result(message)
                yield message and message.params[1]

    @contextmanager
    def _running(self, method: str, params: tuple[object, ...]) -> Iterator[deque[Notification | Response]]:
        """Start a call; what comes for it is put where the caller takes it. One that is left early is cancelled."""
        self._msgid = msgid = self._msgid % 0xFFFFFFFF + 1
        inbox = self._inboxes[msgid] = deque()
        self._send(Request(msgid, method, list(params)))
        try:
            yield inbox
        finally:
            if self._inboxes.pop(msgid, None) is not None:
                with suppress(ConnectionError):  # a node that is gone has ended the call
                    self._send(Notification(protocol.CANCEL, [msgid]))

    def _next(self, inbox: deque[Notification | Response], deadline: float | None) -> Notification | Response | None:
        while not inbox:
            if not self._receive(None if deadline is None else deadline - time.monotonic()):
                return None
        return inbox.popleft()

    def _send(self, message: Message) -> None:
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(encode(message))
        except OSError as error:
            raise self._lost(str(error)) from error

    def _receive(self, seconds: float | None) -> bool:
        """Take what comes next; say whether anything came in time."""
        if seconds is not None and not select.select([self._socket], [], [], max(seconds, 0))[0]:
            return False
        try:
            self._socket.settimeout(None)
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise self._lost(str(error)) from error
        if not data:
            raise self._lost("the node closed the connection")
        try:
            for message in self._decoder.feed(data):
                self._take(message)
        except ProtocolError as error:
            raise self._lost(f"malformed answer: {error}") from error
        return True

    def _take(self, message: Message) -> None:
        match message:
            case Response(0):  # msgid 0 is none of ours: the node says why it closes the connection
                raise self._lost(str(ApiError.from_wire(message.error)))
            case Response(msgid) if msgid in self._inboxes:
                self._inboxes.pop(msgid).append(message)
            case Notification(protocol.STREAM, [int(msgid), _]) if msgid in self._inboxes:
                self._inboxes[msgid].append(message)
            case _:
                pass  # what came too late for a call that was given up

    def _lost(self, reason: str) -> ConnectionError:
        return ConnectionError(f"{self.address}: {reason}")


def _result(response: Response) -> object:
    if response.error is not None:
        raise ApiError.from_wire(response.error)
    return response.result


_HINTS = {
    FileNotFoundError: "there is no such socket; is this a node, or did you mean --vm NAME?",
    ConnectionRefusedError: "nothing listens there any more; the node or its VM has ended",
    PermissionError: "you may not connect; try as root",
    TimeoutError: "no answer; the node is overloaded or stopped",
}


def _connect(address: str, timeout: float) -> socket.socket:
    family, where = parse(address)
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(where)
    except OSError as error:
        connection.close()
        raise ConnectionError(f"{address}: {_HINTS.get(type(error), error.strerror or error)}") from error
    return connection


def vms() -> Any:
    """The harness's VMs by name: qemu.vms. Raises LookupError where there is no harness, as on a node."""
    try:
        from qemu import vms as found  # noqa: PLC0415 only --vm needs it
    except ImportError:
        raise LookupError("the harness is not installed beside this initctl: it can reach no VM by name") from None
    return found


def parse(address: str) -> tuple[socket.AddressFamily, Any]:
    """Return family and address for socket.connect(). Raises ValueError that says what an address looks like."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return socket.AF_UNIX, address
    if scheme == "unix" and rest.startswith("/"):
        return socket.AF_UNIX, rest
    cid, _, port = rest.partition(":")
    if scheme == "vsock" and cid.isdecimal() and (port or "0").isdecimal():
        return socket.AF_VSOCK, (int(cid), int(port or protocol.VSOCK_PORT))
    raise ValueError(f"found {address!r}, expected a path, unix:///PATH or vsock://CID[:PORT]")
