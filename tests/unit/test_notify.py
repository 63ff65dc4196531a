"""The text of sd_notify's messages; the socket itself is tested with real processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.supervise.notify import DIGITS, NUMBERS, VALUES, parse

KEYS = [*VALUES, *NUMBERS, "STATUS", "BARRIER"]


def test_assignments_are_read_and_what_means_nothing_is_passed_over() -> None:
    text = "READY=1\nSTATUS=a=b c\nnonsense\n\nMAINPID=7\nRELOADING=1\nFDSTORE=1\nX_OWN=x\nready=1\n =\n"
    assert parse(text.encode()) == {"READY": "1", "STATUS": "a=b c", "MAINPID": "7"}


def test_the_last_of_two_wins() -> None:
    assert parse(b"STATUS=one\nSTATUS=two") == {"STATUS": "two"}


@pytest.mark.parametrize(
    "line",
    [
        "READY=0", "READY=", "READY=11", "READY", "STOPPING=yes", "WATCHDOG=2", "WATCHDOG=TRIGGER",
        "MAINPID=", "MAINPID=-1", "MAINPID=+1", "MAINPID= 1", "MAINPID=1_0", "MAINPID=0x1", "MAINPID=\u0663",
        "ERRNO=ENOENT", "WATCHDOG_USEC=1.5", "EXTEND_TIMEOUT_USEC=soon", "EXTEND_TIMEOUT_USEC=" + "9" * (DIGITS + 1),
        "STATUS=\x1b[2J", "STATUS=a\0b", "STATUS",
    ],
)  # fmt: skip
def test_a_value_that_means_nothing_is_passed_over(line: str) -> None:
    assert parse(f"ERRNO=2\n{line}\n".encode()) == {"ERRNO": "2"}


def test_every_key_is_understood() -> None:
    for text in (
        "READY=1", "STOPPING=1", "STATUS=", "MAINPID=4194304", "WATCHDOG=1", "WATCHDOG=trigger",
        "WATCHDOG_USEC=18446744073709551615", "EXTEND_TIMEOUT_USEC=0", "ERRNO=0",
    ):  # fmt: skip
        key, _, value = text.partition("=")
        assert parse(text.encode()) == {key: value}


def test_a_barrier_asks_for_nothing_and_makes_void_what_stands_beside_it() -> None:
    assert parse(b"BARRIER=1") == {}
    assert parse(b"READY=1\nBARRIER=1") == {}
    assert parse(b"READY=1\nBARRIER=0") == {"READY": "1"}


@pytest.mark.parametrize("data", [b"", b"\n\n", b"READY", b"READY=1\nSTATUS=\xff", b"STATUS=caf\xc3"])
def test_what_is_no_message(data: bytes) -> None:
    assert parse(data) is None


LINES = st.builds(lambda key, rest: key.encode() + rest, st.sampled_from(KEYS), st.binary(max_size=30))


@given(st.binary(max_size=4096) | st.lists(LINES | st.binary(max_size=20)).map(b"\n".join))
def test_whatever_comes_only_what_is_known_comes_out(data: bytes) -> None:
    for key, value in (parse(data) or {}).items():
        if key in NUMBERS:
            assert 0 <= int(value) < 10**DIGITS
        else:
            assert value in VALUES.get(key, ()) or (key == "STATUS" and value.isprintable())


VALID = {
    "STATUS": st.text(st.characters(codec="utf-8")).filter(str.isprintable),
    **{key: st.sampled_from(values) for key, values in VALUES.items()},
    **{key: st.integers(0, 2**64 - 1).map(str) for key in NUMBERS},
}


@given(st.fixed_dictionaries({}, optional=VALID).filter(bool))
def test_what_is_written_is_read(assignments: dict[str, str]) -> None:
    assert parse("\n".join(f"{key}={value}" for key, value in assignments.items()).encode()) == assignments
