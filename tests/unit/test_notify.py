"""The text of sd_notify's messages; the socket itself is tested with real processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from initd.supervise.notify import parse


def test_assignments_are_read_and_other_lines_passed_over() -> None:
    assert parse(b"READY=1\nSTATUS=a=b c\nnonsense\n\nMAINPID=7") == {"READY": "1", "STATUS": "a=b c", "MAINPID": "7"}


def test_the_last_of_two_wins() -> None:
    assert parse(b"STATUS=one\nSTATUS=two") == {"STATUS": "two"}


@given(st.binary(max_size=4096))
def test_any_bytes_are_a_message(data: bytes) -> None:
    for key, value in parse(data).items():
        assert "\n" not in key + value
        assert "=" not in key


@given(st.dictionaries(st.text("ABC_", min_size=1), st.text(st.characters(exclude_characters="\n", codec="utf-8"))))
def test_what_is_written_is_read(assignments: dict[str, str]) -> None:
    assert parse("\n".join(f"{key}={value}" for key, value in assignments.items()).encode()) == assignments
