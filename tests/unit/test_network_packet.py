"""DHCP messages as bytes: what initd sends, and that nothing which arrives can hurt it."""

from __future__ import annotations

import struct
from contextlib import suppress
from socket import inet_aton

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.network import packet
from initd.network.packet import Kind, Message, Option, RefusedError

MAC = bytes.fromhex("525400123456")


def reply(options: bytes, *, sname: bytes = b"", file: bytes = b"") -> bytes:
    """A server's message with these raw options."""
    head = struct.pack("!BBBBIHH4s4s4s4s", 2, 1, 6, 0, 7, 0, 0, bytes(4), inet_aton("10.0.2.15"), bytes(4), bytes(4))
    return head + MAC.ljust(16, b"\0") + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + b"\x63\x82\x53\x63" + options


def test_request_is_padded_and_carries_its_options() -> None:
    data = packet.encode(Message(Kind.DISCOVER, 0x01020304, MAC, options={Option.CLIENT_ID: b"\x01" + MAC}))
    assert len(data) >= packet.SMALLEST
    assert data[:4] == bytes((1, 1, 6, 0))
    assert data[4:8] == bytes((1, 2, 3, 4))
    assert data[236:].rstrip(b"\0") == b"\x63\x82\x53\x63" + b"\x35\x01\x01" + b"\x3d\x07\x01" + MAC + b"\xff"


def test_reply_is_read() -> None:
    message = packet.decode(reply(b"\x35\x01\x02\x00\x00\x36\x04\x0a\x00\x02\x02\xff\x01\x04junk"))
    assert (message.kind, message.xid, message.mac, message.yours) == (Kind.OFFER, 7, MAC, inet_aton("10.0.2.15"))
    assert message.options == {Option.MESSAGE_TYPE: b"\x02", Option.SERVER_ID: inet_aton("10.0.2.2")}


def test_repeated_option_is_one_value() -> None:
    message = packet.decode(reply(b"\x35\x01\x02\x79\x02ab\x79\x01c\xff"))
    assert message.options[Option.CLASSLESS_ROUTES] == b"abc"


def test_overloaded_fields_hold_options() -> None:
    message = packet.decode(
        reply(b"\x35\x01\x02\x34\x01\x03\xff", file=b"\x06\x04\x01\x01\x01\x01\xff", sname=b"\x1a\x02\x05\xdc\xff")
    )
    assert message.options[Option.DNS] == b"\x01\x01\x01\x01"
    assert message.options[Option.MTU] == b"\x05\xdc"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (reply(b"")[:-5], "at least 240"),
        (reply(b"\x35\x01\x02\x06"), "option 6 has no length"),
        (reply(b"\x35\x01\x02\x06\xc8abc"), "option 6 claims 200 bytes, 3 are left"),
        (reply(b"\xff"), "no message type"),
        (reply(b"\x35\x02\x02\x02\xff"), "no message type"),
        (b"\x01" + reply(b"\x35\x01\x02\xff")[1:], "not a DHCP reply"),
    ],
)
def test_malformed_reply_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        packet.decode(data)


@given(st.binary(max_size=600))
def test_random_bytes_raise_nothing_but_malformed(data: bytes) -> None:
    for parse in (packet.decode, packet.unwrap):
        with suppress(RefusedError):
            parse(data)


@given(st.binary(max_size=80), st.binary(max_size=64), st.binary(max_size=128))
def test_random_options_raise_nothing_but_malformed(options: bytes, sname: bytes, file: bytes) -> None:
    with suppress(RefusedError):
        packet.decode(reply(b"\x35\x01\x02\x34\x01\x03" + options, sname=sname, file=file))


@given(st.binary(max_size=400), st.integers(0, 450))
def test_wrapped_payload_survives_and_a_torn_packet_does_not(payload: bytes, cut: int) -> None:
    sent = packet.wrap(payload, "0.0.0.0", "255.255.255.255")
    back = bytearray(sent)
    back[20:24] = sent[22:24] + sent[20:22]  # as the server's answer has the ports
    assert packet.unwrap(bytes(back)) == payload
    assert packet.unwrap(bytes(back) + b"padding of a short frame") == payload
    if cut < len(back):
        with pytest.raises(RefusedError):
            packet.unwrap(bytes(back[:cut]))


@given(st.binary(max_size=100))
def test_checksums_add_up(payload: bytes) -> None:
    sent = packet.wrap(payload, "10.0.2.15", "10.0.2.2")
    pseudo = sent[12:20] + struct.pack("!HH", 17, len(sent) - 20)

    def total(data: bytes) -> int:
        return int(sum(struct.unpack(f"!{len(data) // 2}H", data))) % 0xFFFF

    assert total(sent[:20]) == 0
    assert total(pseudo + sent[20:] + b"\0" * (len(sent) % 2)) == 0
