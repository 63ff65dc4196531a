"""Many clients on one serial line, without I/O: which call is whose, and where the line is in step.

A serial port is one stream of bytes without peers, and it does not say when the other end was replaced in the middle of
a frame. Two parts deal with that: Line finds the point from which frames can be trusted, Multiplexer gives each call of
each client a number of its own on the line.
"""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, cast

from initd.api.protocol import (
    CANCEL,
    HELLO,
    HELLO_RESPONSE,
    MAX_RESPONSE,
    NONCE_DIGITS,
    REQUEST_LIMITS,
    STREAM,
    ApiError,
    Code,
    Decoder,
    Limits,
    Marker,
    Message,
    Notification,
    ProtocolError,
    Request,
    Response,
    encode,
)

if TYPE_CHECKING:
    from initd.api.types import VersionInfo

MAX_CALLS = 32  # outstanding calls of one client: half of what the node runs for the whole line

# A frame that the node refuses ends the session of every client, so what a client may send is bounded here: by the
# node's own limits, less what the msgid may grow when it is renumbered.
FROM_CLIENT = REQUEST_LIMITS._replace(message=REQUEST_LIMITS.message - 8)
_FROM_GUEST = Limits(message=MAX_RESPONSE + 4096)


class Line:
    """The host's end of the serial line: a hello with a nonce, then frames.

    Whatever comes before the answer to the last hello is discarded: the end of a frame that an earlier PID 1 wrote, an
    answer to an earlier nonce, noise. Only a PID 1 that read this hello can know the nonce, so no crash and no leftover
    can forge the answer.
    """

    def __init__(self) -> None:
        self.version: VersionInfo | None = None  # who answered; None while the line is not in step
        self._nonce = ""
        self._marker: Marker | None = None
        self._decoder: Decoder | None = None

    def hello(self) -> bytes:
        """Fall out of step, and return the frame that gets the line back into it."""
        self.lose()
        self._nonce = secrets.token_hex(NONCE_DIGITS // 2)
        self._marker = Marker(HELLO_RESPONSE + self._nonce.encode())
        return self.hello_again()

    def hello_again(self) -> bytes:
        """Return the same hello, for a guest that may have lost it: an answer to either will do."""
        return encode(Request(0, HELLO, [self._nonce]))

    def lose(self) -> None:
        """Discard what comes until the next hello is answered."""
        self.version = self._decoder = self._marker = None

    def feed(self, data: bytes) -> list[Message]:
        """Return the frames that data completes, the answer to the hello left out.

        Raises ProtocolError if the guest sent what is no frame, or says that we did; the line is then out of step until
        the next hello.
        """
        if self._marker is not None:
            found = self._marker.feed(data)
            if found is None:
                return []
            self._marker, self._decoder, data = None, Decoder(_FROM_GUEST), found
        if self._decoder is None:
            return []
        try:
            messages = self._decoder.feed(data)
            if self.version is None and messages:
                self.version = _version(messages.pop(0))
            for message in messages:
                _check(message)
        except ProtocolError:
            self.lose()
            raise
        return messages


def _check(message: Message) -> None:
    match message:
        case Response(msgid=0, error=error) if error is not None:
            raise ProtocolError(f"the node ended the session: {ApiError.from_wire(error)}")


def _version(answer: Message) -> VersionInfo:
    match answer:
        case Response(error=None, result=[_, {"boot_id": str(), "version": str()} as version]):
            return cast("VersionInfo", version)
    raise ProtocolError("expected [1, 0, nil, [nonce, VersionInfo]] as the answer to hello")


class _Call(NamedTuple):
    client: int
    msgid: int


class Multiplexer:
    """Renumbers the calls of many clients; each client is a number that the caller chose."""

    def __init__(self) -> None:
        self._numbers = itertools.count(
            1
        )  # never reused, so that an answer to an abandoned call finds nobody; 0 is the hello's
        self._calls: dict[int, _Call] = {}  # by number on the line
        self._lines: dict[_Call, int] = {}
        self._load: Counter[int] = Counter()

    def request(self, client: int, request: Request) -> Request:
        """Return the request for the line. Raises ApiError to answer with, or ProtocolError for a msgid that is still
        in use.
        """
        call = _Call(client, request.msgid)
        if call in self._lines:
            raise ProtocolError(f"msgid {request.msgid} belongs to a call that has not ended")
        if self._load[client] >= MAX_CALLS:
            raise ApiError(Code.RESOURCE_EXHAUSTED, f"more than {MAX_CALLS} calls at once on one connection")
        number = next(self._numbers)
        self._calls[number] = call
        self._lines[call] = number
        self._load[client] += 1
        return request._replace(msgid=number)

    def notification(self, client: int, notification: Notification) -> Notification | None:
        """Return the notification for the line; None if it means nothing, such as a cancel that met its call's end."""
        match notification:
            case Notification(method="cancel", params=[int(msgid)]) if number := self._lines.get(_Call(client, msgid)):
                return Notification(CANCEL, [number])
        return None

    def from_guest(self, message: Message) -> tuple[int, Message] | None:
        """Return (client, message for it); None if nobody waits for the message."""
        match message:
            case Response(msgid=number) if call := self._end(number):
                return call.client, message._replace(msgid=call.msgid)
            case Notification(method="stream", params=[int(number), item]) if call := self._calls.get(number):
                return call.client, Notification(STREAM, [call.msgid, item])
        return None

    def drop(self, client: int) -> list[Notification]:
        """Forget a client; return the cancels for the line."""
        numbers = [number for number, call in self._calls.items() if call.client == client]
        for number in numbers:
            self._end(number)
        self._load.pop(client, None)
        return [Notification(CANCEL, [number]) for number in numbers]

    def reset(self, error: ApiError) -> list[tuple[int, Response]]:
        """End every call; return the answers to give, as (client, response)."""
        calls, self._calls = self._calls, {}
        self._lines.clear()
        self._load.clear()
        return [(call.client, Response(call.msgid, error.to_wire(), None)) for call in calls.values()]

    def _end(self, number: int) -> _Call | None:
        call = self._calls.pop(number, None)
        if call is not None:
            del self._lines[call]
            self._load[call.client] -= 1
        return call
