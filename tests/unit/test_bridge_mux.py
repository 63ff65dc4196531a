"""The serial line's bookkeeping: whatever clients and guest do, an answer reaches its own call and nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.api.protocol import HELLO_RESPONSE, ApiError, Code, Notification, ProtocolError, Request, Response, encode
from qemu.mux import MAX_CALLS, Line, Multiplexer

VERSION = {"version": "1", "kernel": "6", "python": "3", "boot_id": "b", "image": None}
GONE = ApiError(Code.UNAVAILABLE, "gone")


def nonce_of(hello: bytes) -> str:
    return hello[-32:].decode()


def answer(hello: bytes) -> bytes:
    return encode(Response(0, None, [nonce_of(hello), VERSION]))


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    cut = []
    for size in sizes:
        cut.append(data[:size])
        data = data[size:]
    return [*cut, data]


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=12))
def test_line_finds_its_step_after_any_noise_in_any_pieces(noise: bytes, sizes: list[int]) -> None:
    line = Line()
    data = noise + answer(line.hello()) + encode(Response(7, None, "x"))
    got = [message for piece in pieces(data, sizes) for message in line.feed(piece)]
    assert got == [Response(7, None, "x")]
    assert line.version == VERSION


def test_an_answer_to_an_earlier_nonce_proves_nothing() -> None:
    line = Line()
    old = answer(line.hello())
    hello = line.hello()
    assert line.feed(old + HELLO_RESPONSE + b"0" * 32) == []
    assert line.version is None
    line.feed(answer(hello))
    assert line.version == VERSION


def test_a_repeated_hello_is_answered_once_or_twice_and_nobody_notices() -> None:
    line = Line()
    first = line.hello()
    assert line.hello_again() == first
    assert line.feed(answer(first)) == []
    mux = Multiplexer()
    assert [mux.from_guest(message) for message in line.feed(answer(first))] == [None]
    assert line.version == VERSION


@pytest.mark.parametrize(
    "bad",
    [b"\xc1", encode(Response(0, ["INVALID_ARGUMENT", "protocol error"], None))],
    ids=["no frame", "the node ended the session"],
)
def test_a_broken_line_is_out_of_step_until_the_next_hello(bad: bytes) -> None:
    line = Line()
    line.feed(answer(line.hello()))
    with pytest.raises(ProtocolError):
        line.feed(bad)
    assert line.version is None
    assert line.feed(encode(Response(1, None, None))) == []
    line.feed(answer(line.hello()))
    assert line.version == VERSION


def test_an_answer_without_a_boot_is_refused() -> None:
    line = Line()
    hello = line.hello()
    with pytest.raises(ProtocolError, match="VersionInfo"):
        line.feed(encode(Response(0, None, [nonce_of(hello), {}])))


def test_a_msgid_in_use_is_an_error_and_a_free_one_is_not() -> None:
    mux = Multiplexer()
    number = mux.request(2, Request(5, "a", [])).msgid
    with pytest.raises(ProtocolError, match="msgid 5"):
        mux.request(2, Request(5, "b", []))
    assert mux.from_guest(Response(number, None, 1)) == (2, Response(5, None, 1))
    assert mux.request(2, Request(5, "b", [])).msgid != number


def test_calls_of_one_client_are_bounded_and_another_has_its_own_bound() -> None:
    mux = Multiplexer()
    numbers = [mux.request(2, Request(msgid, "a", [])).msgid for msgid in range(MAX_CALLS)]
    with pytest.raises(ApiError, match="calls at once"):
        mux.request(2, Request(MAX_CALLS, "a", []))
    mux.request(3, Request(0, "a", []))
    mux.from_guest(Response(numbers[0], None, None))
    mux.request(2, Request(MAX_CALLS, "a", []))


def test_cancel_is_translated_and_one_for_a_finished_call_goes_nowhere() -> None:
    mux = Multiplexer()
    number = mux.request(2, Request(5, "events", [])).msgid
    assert mux.notification(3, Notification("cancel", [5])) is None
    assert mux.notification(2, Notification("cancel", [5])) == Notification("cancel", [number])
    assert mux.from_guest(Notification("stream", [number, "last"])) == (2, Notification("stream", [5, "last"]))
    mux.from_guest(Response(number, None, None))
    assert mux.notification(2, Notification("cancel", [5])) is None
    assert mux.notification(2, Notification("cancel", ["x"])) is None
    assert mux.notification(2, Notification("whatever", [])) is None


STEPS = st.tuples(
    st.sampled_from(["request", "request", "request", "answer", "answer", "item", "drop", "reset", "stray"]),
    st.integers(0, 3),
    st.integers(0, 5),
)


@given(st.lists(STEPS, max_size=80))
def test_every_message_reaches_its_call_whatever_the_order(steps: list[tuple[str, int, int]]) -> None:
    mux = Multiplexer()
    open_calls: dict[int, tuple[int, int]] = {}  # number on the line: (client, msgid)
    ever: set[int] = set()
    for step, client, pick in steps:
        number: Any = sorted(open_calls)[pick % len(open_calls)] if open_calls else None
        match step:
            case "request" if (client, pick) not in open_calls.values():
                request = mux.request(client, Request(pick, "m", [client]))
                assert request.msgid not in ever | {0}
                assert request.params == [client]
                ever.add(request.msgid)
                open_calls[request.msgid] = (client, pick)
            case "answer" if open_calls:
                owner, msgid = open_calls.pop(number)
                assert mux.from_guest(Response(number, None, number)) == (owner, Response(msgid, None, number))
            case "item" if open_calls:
                owner, msgid = open_calls[number]
                assert mux.from_guest(Notification("stream", [number, 1])) == (
                    owner,
                    Notification("stream", [msgid, 1]),
                )
            case "drop":
                mine = {number for number, call in open_calls.items() if call[0] == client}
                assert {cancel.params[0] for cancel in mux.drop(client)} == mine
                for number in mine:
                    del open_calls[number]
            case "reset":
                assert sorted((client, response.msgid) for client, response in mux.reset(GONE)) == sorted(
                    open_calls.values()
                )
                open_calls.clear()
            case "stray":
                for number in ever - set(open_calls):
                    assert mux.from_guest(Response(number, None, None)) is None
                    assert mux.from_guest(Notification("stream", [number, 1])) is None
