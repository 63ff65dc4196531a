"""What services write, cut into lines and kept."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.supervise.output import LINE_BYTES, LINES, RING_BYTES, Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from initd.api.types import LogLine


@pytest.fixture
def output() -> Iterator[Output]:
    made = Output()
    yield made
    os.close(made.reader)
    os.close(made.writer)


def texts(output: Output, count: int = LINES) -> list[str]:
    return [line["text"] for line in output.tail(count)]


def long_lines() -> st.SearchStrategy[bytes]:
    runs = st.tuples(st.sampled_from([b"a", b"\n", b"\xc3\xa4", b"\xff"]), st.integers(1, LINE_BYTES + 2))
    return st.lists(runs, max_size=6).map(lambda parts: b"".join(unit * count for unit, count in parts))


@given(st.one_of(st.binary(), long_lines()), st.lists(st.integers(1, 9000), max_size=8))
def test_any_split_gives_the_same_lines(data: bytes, sizes: list[int]) -> None:
    whole, pieces = Output(), Output()
    whole.feed(data)
    for size in sizes:
        pieces.feed(data[:size])
        data = data[size:]
    pieces.feed(data)
    assert texts(pieces) == texts(whole)
    assert pieces._rest == whole._rest
    for output in (whole, pieces):
        os.close(output.reader)
        os.close(output.writer)


def test_a_line_too_long_becomes_several_and_none_is_lost(output: Output) -> None:
    output.feed(b"x" * (2 * LINE_BYTES + 1) + b"\nnext\n")
    assert [len(text) for text in texts(output)] == [LINE_BYTES, LINE_BYTES, 1, len("next")]


def test_the_ring_is_bounded_in_lines_and_in_size(output: Output) -> None:
    output.feed(b"\n" * (LINES + 5))
    assert len(texts(output, 10 * LINES)) == LINES
    output.feed((b"y" * LINE_BYTES + b"\n") * 100)
    assert sum(map(len, texts(output))) <= RING_BYTES
    output.feed(b"z" * (10 * RING_BYTES))  # and never ends the line
    assert len(output._rest) <= LINE_BYTES


def test_the_tail(output: Output) -> None:
    output.feed(b"1\n2\n3\npart")
    assert texts(output, 2) == ["2", "3"]
    assert texts(output, 0) == texts(output, -1) == []


def test_the_pipe_is_drained_without_waiting(output: Output) -> None:
    output.drain()
    os.write(output.writer, b"one\ntwo\n")
    output.drain()
    assert texts(output) == ["one", "two"]


def test_what_a_process_left_unfinished_is_a_line_of_its_own(output: Output) -> None:
    output.feed(b"whole\nbeg")
    os.write(output.writer, b"un" + b"." * 40000)
    output.end()
    output.end()  # nothing is left, so no empty line is made
    output.feed(b"the next one\n")
    found = texts(output)
    assert (found[0], found[1][:6], found[-1]) == ("whole", "begun.", "the next one")
    assert sum(map(len, found[1:-1])) == len("begun") + 40000


async def take(lines: AsyncGenerator[LogLine, None], count: int) -> list[tuple[str, int]]:
    found = []
    for _ in range(count):
        line = await asyncio.wait_for(anext(lines), 5)
        found.append((line["text"], line["dropped"]))
    return found


def test_a_follower_gets_what_comes_and_is_told_what_it_missed(output: Output) -> None:
    async def follow() -> None:
        output.feed(b"old\nlast\n")
        lines = output.follow(1)
        assert await take(lines, 1) == [("last", 0)]
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        output.feed(b"new\n")
        assert (await waiting)["text"] == "new"
        output.feed(b"".join(b"%d\n" % number for number in range(LINES + 3)))
        assert await take(lines, 2) == [("3", 3), ("4", 0)]
        await lines.aclose()
        assert not output._wakers

    asyncio.run(follow())


def test_a_negative_tail_hides_nothing_that_comes(output: Output) -> None:
    async def follow() -> None:
        lines = output.follow(-5)
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        output.feed(b"first\n")
        assert (await asyncio.wait_for(waiting, 5))["text"] == "first"
        await lines.aclose()

    asyncio.run(follow())
