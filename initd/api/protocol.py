"""MessagePack-RPC without I/O: what the API, initctl, the workers and the VM harness speak.

Frames (https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md):

    [0, msgid, method, params]    request        msgid is an unsigned 32-bit integer
    [1, msgid, error, result]     response       error is nil, [code, message] or [code, message, data]
    [2, method, params]           notification   here "stream" [msgid, item] and "cancel" [msgid]

An error is an array because a map breaks clients that others wrote. Whatever comes in is bounded before it costs
memory, and whatever is wrong with it is one exception, ProtocolError, after which that stream cannot be read further.

PID 1 imports this before most of the standard library is there, so it imports next to nothing itself.
"""

from enum import StrEnum
from typing import Any, NamedTuple, Self, TypeAlias

import msgpack

REQUEST, RESPONSE, NOTIFICATION = 0, 1, 2
STREAM, CANCEL, HELLO = "stream", "cancel", "hello"
VSOCK_PORT = 1024  # where a node listens, if it does

# The only frames that a receiver on a serial line trusts after a reconnect: the nonce of 32 hexadecimal digits follows.
NONCE_DIGITS = 32
HELLO_REQUEST = b"\x94\x00\x00\xa5hello\x91\xd9\x20"
HELLO_RESPONSE = b"\x94\x01\x00\xc0\x92\xd9\x20"

_MSGID_END = 1 << 32
_CHUNK = 1 << 16  # how much is given to the unpacker at once, so that its buffer has a bound whatever the caller read


class Code(StrEnum):
    """What kind of error a call met: gRPC's names (https://grpc.io/docs/guides/status-codes/)."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class ApiError(Exception):
    """A call's failure, as it goes over the wire. data, if given, must be plain data."""

    def __init__(self, code: Code, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def to_wire(self) -> list[object]:
        """[code, message], or [code, message, data]."""
        return [self.code, self.message] if self.data is None else [self.code, self.message, self.data]

    @classmethod
    def from_wire(cls, error: object) -> Self:
        """Make an ApiError of a response's error, whatever a foreign server put there."""
        match error:
            case [str(code), str(message), *rest]:
                data = rest[0] if rest else None
                if code in Code.__members__:
                    return cls(Code(code), message, data)
                return cls(Code.UNKNOWN, f"{code}: {message}", data)
            case _:
                return cls(Code.UNKNOWN, str(error))


class Request(NamedTuple):
    """A call that wants a response with the same msgid."""

    msgid: int
    method: str
    params: list[object]


class Response(NamedTuple):
    """The end of a call: error is None, or what ApiError.to_wire() gives."""

    msgid: int
    error: object
    result: object


class Notification(NamedTuple):
    """A message that nobody answers."""

    method: str
    params: list[object]


Message: TypeAlias = Request | Response | Notification


class ProtocolError(Exception):
    """The peer sent what is no frame, or too large a one. messages holds the good frames decoded just before it."""

    def __init__(self, reason: str, messages: tuple[Message, ...] = ()) -> None:
        super().__init__(reason)
        self.messages = messages


class Limits(NamedTuple):
    """Bounds on one incoming frame: bytes, levels (the frame itself is one), elements of an array, pairs of a map."""

    message: int = 1 << 20
    depth: int = 16
    array: int = 65536
    map: int = 4096


REQUEST_LIMITS = Limits(message=1 << 16, array=4096, map=1024)  # of a node: no call needs more, PID 1's memory pays
MAX_RESPONSE = 1 << 20  # bytes that a node sends in one frame, and a client's decoder takes


def encode(message: Message) -> bytes:
    """Return the frame of a message.

    Text that is no Unicode (file names and logs read with surrogateescape) goes out with question marks, since a reader
    may refuse it. Raises TypeError, ValueError or OverflowError for what is not plain data with 64-bit integers.
    """
    match message:
        case Request():
            frame: tuple[object, ...] = (REQUEST, *message)
        case Response():
            frame = (RESPONSE, *message)
        case Notification():
            frame = (NOTIFICATION, *message)
    packed: bytes = msgpack.packb(frame, unicode_errors="replace")
    return packed


class Decoder:
    """Turns one stream of bytes, in whatever pieces it comes, into messages."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - an immutable tuple
        self._limits = limits
        self._unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=True,
            read_size=min(4096, limits.message),  # else a megabyte is allocated for each connection
            max_buffer_size=limits.message + _CHUNK,
            max_str_len=limits.message,
            max_bin_len=limits.message,
            max_array_len=limits.array,
            max_map_len=limits.map,
            max_ext_len=0,
            ext_hook=_refuse_extension,  # one may still be empty
        )
        self._fed = 0  # bytes given to the unpacker, ever
        self._start = 0  # where the message that is being read starts
        self._failed = ""

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Return the messages that data completes.

        Raises ProtocolError on the first malformed or oversized frame, and on every call after it.
        """
        messages: list[Message] = []
        if self._failed:
            raise ProtocolError(self._failed)
        try:
            with memoryview(data) as view:
                for offset in range(0, len(view), _CHUNK):
                    self._feed_chunk(view[offset : offset + _CHUNK], messages)
        except (ValueError, msgpack.UnpackException) as error:  # msgpack's own errors are of both kinds
            self._failed = str(error) or f"not MessagePack ({type(error).__name__})"
            raise ProtocolError(self._failed, tuple(messages)) from None
        return messages

    def _feed_chunk(self, chunk: memoryview, messages: list[Message]) -> None:
        self._unpacker.feed(chunk)
        self._fed += len(chunk)
        for value in self._unpacker:
            self._check_size(self._unpacker.tell())
            self._start = self._unpacker.tell()
            messages.append(_message(value, self._limits.depth))
        # The unpacker frees its buffer as it parses, so the buffer's bound alone would let an array grow for ever.
        self._check_size(self._fed)

    def _check_size(self, end: int) -> None:
        if end - self._start > self._limits.message:
            raise ValueError(f"message of more than {self._limits.message} bytes")


class Marker:
    """Finds the frame at which a serial line is in step again, in whatever pieces it comes."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._tail = b""

    def feed(self, data: bytes) -> bytes | None:
        """Return what came from the last marker on, the marker included, once there is one; None before that."""
        seen = self._tail + data
        at = seen.rfind(self._marker)
        if at >= 0:
            self._tail = b""
            return seen[at:]
        self._tail = seen[-(len(self._marker) - 1) :]
        return None


def is_nonce(value: object) -> bool:
    """Say whether value is what a hello carries: 32 lowercase hexadecimal digits."""
    return isinstance(value, str) and len(value) == NONCE_DIGITS and not value.strip("0123456789abcdef")


def _refuse_extension(code: int, _data: bytes) -> object:
    raise ValueError(f"extension type {code}")


def _message(value: Any, depth: int) -> Message:
    """Check the shape of one decoded frame; ValueError says what is wrong with it."""
    if type(value) is list and value and type(value[0]) is int:  # type(), because True is an int and 1.0 equals 1
        _check_depth(value, depth)
        match value:
            case [0, msgid, str(method), list(params)] if _is_msgid(msgid):
                return Request(msgid, method, params)
            case [1, msgid, error, result] if _is_msgid(msgid):
                return Response(msgid, error, result)
            case [2, str(method), list(params)]:
                return Notification(method, params)
    raise ValueError("expected [0, msgid, method, params], [1, msgid, error, result] or [2, method, params]")


def _is_msgid(value: object) -> bool:
    return type(value) is int and 0 <= value < _MSGID_END


def _check_depth(frame: list[Any], depth: int) -> None:
    """Walk level by level, without recursion: the unpacker itself goes down to 1024 levels."""
    level: list[Any] = [frame]
    for _ in range(depth):
        inner = (child for parent in level for child in (parent.values() if type(parent) is dict else parent))
        level = [child for child in inner if type(child) in (list, dict)]
    if level:
        raise ValueError(f"message nested more than {depth} levels deep")
