"""DHCPv4 messages to and from bytes (RFC 2131, RFC 2132, RFC 3396) and the IPv4 and UDP headers that carry them.

Everything that arrives is hostile until proven otherwise: `decode` and `unwrap` raise RefusedError and nothing else.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from socket import inet_aton
from typing import NamedTuple

BROADCAST = "255.255.255.255"
ANY = "0.0.0.0"  # the source of a client without an address
CLIENT_PORT = 68
SERVER_PORT = 67
SMALLEST = 300  # bytes; BOOTP relays drop anything shorter (RFC 1542 section 2.1)
_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_REQUEST, _REPLY, _ETHERNET = 1, 2, 1
_UDP = 17


class RefusedError(ValueError):
    """Bytes that are no DHCP reply, or one that must not be used; the text says why."""


class Kind(IntEnum):
    """The message types (option 53) that a client sends or hears, a DECLINE and a RELEASE apart: it sends neither."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    ACK = 5
    NAK = 6


class Option(IntEnum):
    """The options that initd sends or reads (RFC 2132, RFC 3442)."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOST_NAME = 12
    MTU = 26
    NTP = 42
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETERS = 55
    MESSAGE = 56
    MAX_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_ID = 61
    CLASSLESS_ROUTES = 121
    END = 255


class Message(NamedTuple):
    """One DHCP message; addresses are 4 bytes, `mac` is 6, `options` maps a code to its whole value."""

    kind: int
    xid: int
    mac: bytes
    seconds: int = 0
    client: bytes = bytes(4)
    yours: bytes = bytes(4)
    options: Mapping[int, bytes] = {}


def encode(message: Message) -> bytes:
    options = {Option.MESSAGE_TYPE: bytes((message.kind,)), **message.options}
    # No BROADCAST flag: the packet socket hears unicasts to an address that is not configured yet.
    head = (_REQUEST, _ETHERNET, 6, 0, message.xid, min(message.seconds, 0xFFFF), 0, message.client, message.yours)
    fixed = _FIXED.pack(*head, b"", b"", message.mac, b"", b"", _COOKIE)
    body = b"".join(bytes((code, len(value))) + value for code, value in options.items())
    return (fixed + body + bytes((Option.END,))).ljust(SMALLEST, b"\0")


def decode(data: bytes) -> Message:
    """A server's reply. Raises RefusedError."""
    if len(data) < _FIXED.size:
        raise RefusedError(f"{len(data)} bytes, a DHCP message has at least {_FIXED.size}")
    operation, hardware, length, _, xid, seconds, _, client, yours, _, _, address, sname, file, cookie = (
        _FIXED.unpack_from(data)
    )
    if (operation, hardware, length, cookie) != (_REPLY, _ETHERNET, 6, _COOKIE):
        raise RefusedError("not a DHCP reply for Ethernet")
    options: dict[int, bytes] = {}
    _collect(data[_FIXED.size :], options)
    overload = options.get(Option.OVERLOAD, b"\0")[-1:]
    for bit, area in ((1, file), (2, sname)):
        if overload and overload[0] & bit:
            _collect(area, options)
    kind = options.get(Option.MESSAGE_TYPE, b"")
    if len(kind) != 1:
        raise RefusedError("no message type")
    return Message(kind[0], xid, address[:6], seconds, client, yours, options)


def _collect(area: bytes, options: dict[int, bytes]) -> None:
    """Add one option area's options; a repeated code continues the earlier value (RFC 3396)."""
    position = 0
    while position < len(area):
        code = area[position]
        if code == Option.END:
            return
        if code == Option.PAD:
            position += 1
            continue
        if position + 1 == len(area):
            raise RefusedError(f"option {code} has no length")
        length, left = area[position + 1], len(area) - position - 2
        if length > left:
            raise RefusedError(f"option {code} claims {length} bytes, {left} are left")
        position += 2 + length
        options[code] = options.get(code, b"") + area[position - length : position]


def wrap(payload: bytes, source: str, destination: str) -> bytes:
    """The payload from the client's port to the server's as an IPv4 packet."""
    addresses = inet_aton(source) + inet_aton(destination)
    size = 8 + len(payload)
    ports = struct.pack("!HHH", CLIENT_PORT, SERVER_PORT, size)
    pseudo = addresses + struct.pack("!HH", _UDP, size)
    udp = ports + struct.pack("!H", _checksum(pseudo + ports + payload) or 0xFFFF) + payload
    head = struct.pack("!BBHHHBB", 0x45, 0xC0, 20 + size, 0, 0x4000, 64, _UDP)
    return head + struct.pack("!H", _checksum(head + addresses)) + addresses + udp


def unwrap(packet: bytes) -> bytes:
    """The payload of an IPv4 packet that the socket's filter lets through. Raises RefusedError.

    The UDP checksum is not looked at: a sender on the same machine leaves it to hardware that a virtual link does not
    have, so a client that insists on it never gets a lease there.
    """
    start, total = (packet[0] & 15) * 4 if packet else 0, int.from_bytes(packet[2:4], "big")
    size = int.from_bytes(packet[start + 4 : start + 6], "big")
    if start < 20 or size < 8 or not start + size <= total <= len(packet):
        raise RefusedError("lengths that do not fit")
    return packet[start + 8 : start + size]


def _checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071) of data."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
