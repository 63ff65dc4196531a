"""What services write, cut into lines and kept."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.supervise.output import LINE_BYTES, LINES, RING_BYTES, Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from initd.api.types import LogLine


@pytest.fixture
def output() -> Iterator[Output]:
    made = Output("/nowhere/x.log")
    yield made
    close(made)


def close(output: Output) -> None:
    for descriptor in (output.reader, output.writer, output._file._fd):
        if descriptor >= 0:
            os.close(descriptor)


def texts(output: Output, count: int = LINES) -> list[str]:
    return [line["text"] for line in output.tail(count)]


def long_lines() -> st.SearchStrategy[bytes]:
    runs = st.tuples(st.sampled_from([b"a", b"\n", b"\xc3\xa4", b"\xff"]), st.integers(1, LINE_BYTES + 2))
    return st.lists(runs, max_size=6).map(lambda parts: b"".join(unit * count for unit, count in parts))


@given(st.one_of(st.binary(), long_lines()), st.lists(st.integers(1, 9000), max_size=8))
def test_any_split_gives_the_same_lines(data: bytes, sizes: list[int]) -> None:
    whole, pieces = Output("/nowhere/x.log"), Output("/nowhere/x.log")
    whole.feed(data)
    for size in sizes:
        pieces.feed(data[:size])
        data = data[size:]
    pieces.feed(data)
    assert texts(pieces) == texts(whole)
    assert pieces._rest == whole._rest
    close(whole)
    close(pieces)


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


def test_the_file_is_bounded_and_read_by_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    first = Output(str(path))
    for number in range(40):
        first.feed(b"%d %b\n" % (number, b"y" * LINE_BYTES) + b"\xff \r tail\n")
    assert path.stat().st_size <= RING_BYTES
    last = path.read_bytes().decode().split("\n")[-2]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout F \ufffd \r tail", last)
    second = Output(str(path), (first.reader, first.writer))
    assert texts(second) == texts(first)
    assert [line["time"] for line in second.tail(9)] == pytest.approx(
        [line["time"] for line in first.tail(9)], abs=1e-5
    )
    second.feed(b"more\n")
    assert path.read_text().endswith(" stdout F more\n")
    os.close(first._file._fd)
    close(second)


def test_what_the_file_had_no_room_for_is_told(output: Output, tmp_path: Path) -> None:
    output.feed(b"1\n2\n")
    output.feed(b"3\n")
    output._file._path = str(tmp_path / "x.log")
    output.feed(b"4\n")
    assert [line.split(" ", 3)[3] for line in (tmp_path / "x.log").read_text().splitlines()] == [
        "initd: 3 lines dropped",
        "4",
    ]


def test_what_one_read_holds_more_than_the_ring_is_told(output: Output, tmp_path: Path) -> None:
    output._file._path = str(tmp_path / "x.log")
    output.feed(b"\n" * (LINES + 7))
    written = (tmp_path / "x.log").read_text().splitlines()
    assert written[0].endswith(" initd: 7 lines dropped")
    assert len(written) == 1 + LINES


@pytest.mark.parametrize("what", ["fifo", "link", "folder"])
def test_what_else_is_in_the_place_of_the_file_is_left_alone(output: Output, tmp_path: Path, what: str) -> None:
    path, elsewhere = tmp_path / "x.log", tmp_path / "elsewhere"
    elsewhere.touch()
    match what:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(elsewhere)
        case "folder":
            path.mkdir()
    output._file._path = str(path)
    output.feed(b"1\n2\n")
    assert output._file.dropped == 2
    assert output._file.read() == []
    assert not elsewhere.read_bytes()


def test_a_file_that_cannot_be_put_aside_is_begun_anew(output: Output, tmp_path: Path) -> None:
    (tmp_path / "x.log.1").mkdir()
    output._file._path = str(tmp_path / "x.log")
    for _ in range(100):
        output.feed(b"y" * LINE_BYTES + b"\n")
    assert output._file.dropped == 0
    assert (tmp_path / "x.log").stat().st_size <= RING_BYTES


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
