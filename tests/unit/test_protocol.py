"""The message layer: what goes in comes out, however it is cut, and nothing else ever does."""

from __future__ import annotations

import itertools

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.api.protocol import (
    HELLO_REQUEST,
    HELLO_RESPONSE,
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
    is_nonce,
)

NONCE = "0123456789abcdef" * 2
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MSGIDS = st.integers(0, (1 << 32) - 1)
NUMBERS = st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | NUMBERS | TEXT | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
PARAMS = st.lists(VALUES, max_size=4)
MESSAGES = (
    st.builds(Request, MSGIDS, TEXT, PARAMS)
    | st.builds(Response, MSGIDS, st.none() | st.tuples(st.just("INTERNAL"), TEXT).map(list), VALUES)
    | st.builds(Notification, TEXT, PARAMS)
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut data at these places, in whatever order and number they are."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(0, 1 << 16), max_size=20))
def test_messages_come_out_as_they_went_in_however_cut(messages: list[Message], places: list[int]) -> None:
    decoder = Decoder(Limits(depth=64))
    got = [message for piece in cut(b"".join(map(encode, messages)), places) for message in decoder.feed(piece)]
    assert [(type(message), message) for message in got] == [(type(message), message) for message in messages]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_any_bytes_give_messages_or_a_protocol_error_whatever_the_cut(data: bytes, places: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[Message], bool]:
        decoder, got = Decoder(Limits(message=64, depth=4, array=8, map=4)), []
        try:
            for piece in pieces:
                got += decoder.feed(piece)
        except ProtocolError as error:
            return [*got, *error.messages], True
        return got, False

    assert outcome([data]) == outcome(cut(data, places))


@given(st.text() | st.binary())
def test_odd_text_and_bytes_encode_to_what_a_strict_reader_takes(value: str | bytes) -> None:
    frame = encode(Notification("log", [value, {"key": value}]))
    assert len(Decoder().feed(frame)) == 1


def test_undecodable_file_names_are_sent_with_question_marks() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert Decoder().feed(encode(Notification("x", [name]))) == [Notification("x", ["caf?"])]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"\xc1", id="reserved byte"),
        pytest.param(b"\x01", id="no array"),
        pytest.param(b"\x90", id="empty array"),
        pytest.param(b"\x94\xc2\x00\xa1x\x90", id="type is false"),
        pytest.param(b"\x94\xcb" + bytes(8) + b"\x00\xa1x\x90", id="type is a float"),
        pytest.param(msgpack.packb([0, True, "x", []]), id="msgid is true"),
        pytest.param(msgpack.packb([0, -1, "x", []]), id="msgid is negative"),
        pytest.param(msgpack.packb([0, 1 << 32, "x", []]), id="msgid is too large"),
        pytest.param(msgpack.packb([0, 1, b"x", []]), id="method is binary"),
        pytest.param(msgpack.packb([0, 1, "x", {}]), id="params is a map"),
        pytest.param(msgpack.packb([0, 1, "x", [], 1]), id="one element too many"),
        pytest.param(msgpack.packb([1, 1, None]), id="response without result"),
        pytest.param(msgpack.packb([2, "x", None]), id="notification without params"),
        pytest.param(msgpack.packb([3, "x", []]), id="unknown type"),
        pytest.param(msgpack.packb([2, "x", [msgpack.ExtType(5, b"")]]), id="ext type"),
        pytest.param(msgpack.packb([2, "x", [msgpack.Timestamp(0)]]), id="timestamp"),
        pytest.param(msgpack.packb([2, "x", [{1: 2}]]), id="integer key"),
        pytest.param(b"\x93\x02\xa1x\x91\xa1\xff", id="invalid UTF-8"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="huge array"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="huge map"),
        pytest.param(b"\x91" * 5000, id="deeper than the unpacker goes"),
        pytest.param(b"\x93\x02\xa1x" + b"\x91" * 16 + b"\xc0", id="deeper than the limit"),
    ],
)
def test_what_is_no_frame_is_refused_with_a_reason(frame: bytes) -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError) as caught:
        decoder.feed(frame)
    assert str(caught.value)
    with pytest.raises(ProtocolError, match=r".+"):
        decoder.feed(encode(Request(1, "version", [])))


def test_good_frames_before_a_bad_one_are_not_lost() -> None:
    with pytest.raises(ProtocolError) as caught:
        Decoder().feed(encode(Request(1, "version", [])) + b"\xc1")
    assert caught.value.messages == (Request(1, "version", []),)


def test_nesting_up_to_the_limit_is_taken() -> None:
    assert Decoder(Limits(depth=4)).feed(b"\x93\x02\xa1x\x91\x91\x90")
    with pytest.raises(ProtocolError, match="more than 4 levels"):
        Decoder(Limits(depth=4)).feed(b"\x93\x02\xa1x\x91\x91\x91\x90")


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_a_message_may_have_exactly_the_limit(size: int) -> None:
    message = Notification("x", [b"a" * 1000])
    frame = encode(message)
    pieces = [frame[at : at + size] for at in range(0, len(frame), size)]

    def read(limit: int) -> list[Message]:
        decoder = Decoder(Limits(message=limit))
        return [message for piece in pieces for message in decoder.feed(piece)]

    assert read(len(frame)) == [message]
    with pytest.raises(ProtocolError, match=r"bytes|exceeds"):
        read(len(frame) - 1)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        pytest.param(b"\xdc\xff\xff", b"\xdc\xff\xff" + b"\x90" * 0xFFFF, id="arrays"),
        pytest.param(b"\xdb\xff\xff\xff\xff", b"a" * 65536, id="text"),
        pytest.param(b"\xc6\xff\xff\xff\xff", b"a" * 65536, id="binary"),
    ],
)
def test_a_message_that_never_ends_is_cut_off_at_the_limit(start: bytes, more: bytes) -> None:
    decoder = Decoder()
    decoder.feed(start)
    for _ in range((1 << 20) // len(more) - 1):
        assert decoder.feed(more) == []
    with pytest.raises(ProtocolError, match="1048576"):
        decoder.feed(more + more)


def test_many_small_messages_in_one_large_piece_are_all_taken() -> None:
    frame = encode(Request(1, "version", []))
    assert len(Decoder(Limits(message=64)).feed(frame * 100_000)) == 100_000


def test_errors_cross_the_wire_and_foreign_ones_are_understood() -> None:
    error = ApiError.from_wire(ApiError(Code.NOT_FOUND, "no such service", {"services": ["kubelet"]}).to_wire())
    assert (error.code, error.message, error.data) == (Code.NOT_FOUND, "no such service", {"services": ["kubelet"]})
    assert ApiError(Code.INTERNAL, "x").to_wire() == ["INTERNAL", "x"]
    assert ApiError.from_wire(["E42", "odd"]).message == "E42: odd"
    assert ApiError.from_wire("text").code is Code.UNKNOWN
    assert ApiError.from_wire([1, 2, 3]).code is Code.UNKNOWN


def test_a_hello_has_the_fixed_bytes_that_a_lost_reader_looks_for() -> None:
    assert encode(Request(0, "hello", [NONCE])) == HELLO_REQUEST + NONCE.encode()
    assert encode(Response(0, None, [NONCE, {}])).startswith(HELLO_RESPONSE + NONCE.encode())
    assert is_nonce(NONCE)
    assert not any(map(is_nonce, ["", NONCE[1:], NONCE.upper(), NONCE[1:] + "g", 5, None]))


@given(st.binary(max_size=200), st.binary(max_size=50), st.lists(st.integers(0, 300), max_size=10))
def test_a_marker_is_found_after_any_garbage_however_it_is_cut(garbage: bytes, rest: bytes, places: list[int]) -> None:
    marker = HELLO_RESPONSE + NONCE.encode()
    reader, found = Marker(marker), b""
    for piece in cut(garbage + marker + rest, places):
        got = reader.feed(piece) if not found else piece
        found += got or b""
    assert found == marker + rest
