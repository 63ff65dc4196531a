"""PID 1's log: what goes where, and that nothing makes it wait or raise."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import tty
from typing import TYPE_CHECKING

import pytest

from initd import log
from initd.log import CONSOLE_BYTES, RECORD_BYTES, Console, human

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX_BYTES = len(b"<30>initd: ")


class Terminal:
    """A console on a pseudo-terminal, and the other side of it."""

    def __init__(self) -> None:
        self.reader, self.inner = pty.openpty()
        tty.setraw(self.inner)
        self.console = Console(os.ttyname(self.inner))
        os.set_blocking(self.reader, False)

    def read(self) -> bytes:
        data = b""
        while select.select([self.reader], [], [], 0)[0]:
            data += os.read(self.reader, 1 << 16)
        return data

    def hang_up(self) -> None:
        os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        for descriptor in (self.reader, self.inner, self.console._fd):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_log", log._Log())


def fill(console: Console) -> int:
    """Write until the terminal and the queue are full; returns how many lines it took."""
    count = 0
    while not console.dropped:
        count += 1
        console.write(f"{count:06d}" + "x" * 1000)
        assert count < 1000
    return count - 1


def test_a_full_console_drops_lines_and_says_how_many(terminal: Terminal) -> None:
    taken = fill(terminal.console)
    assert len(terminal.console._waiting) <= CONSOLE_BYTES
    for _ in range(6):
        terminal.console.write("lost" + "x" * 1000)
    seen = b""
    while data := terminal.read():
        seen += data
        terminal.console.flush()
    terminal.console.write("after")
    lines = (seen + terminal.read()).decode().splitlines()
    assert sum(line.endswith("x") for line in lines) == taken
    assert lines[-1] == "after"
    assert not any(line.startswith("lost") for line in lines)
    assert sum(int(line.split()[1]) for line in lines if line.endswith("console lines dropped")) == 7


def test_a_console_that_hangs_up_costs_its_lines_only(terminal: Terminal) -> None:
    terminal.console.write("before")
    terminal.hang_up()
    for _ in range(2000):  # more than Python's stack is deep
        terminal.console.write("into the void")
    assert terminal.console.dropped >= 2000
    assert not terminal.console._waiting


def test_the_loop_writes_what_a_slow_console_left(terminal: Terminal) -> None:
    async def drain() -> bytes:
        terminal.console.attach(asyncio.get_running_loop())
        fill(terminal.console)
        seen = b""
        async with asyncio.timeout(10):
            while terminal.console._waiting:
                seen += terminal.read()
                await asyncio.sleep(0)
        assert not terminal.console._watched
        return seen + terminal.read()

    assert asyncio.run(drain()).endswith(b"x\r\n")


def test_no_console_is_no_failure(tmp_path: Path) -> None:
    console = Console(str(tmp_path / "missing"))
    console.write("nobody reads this")
    assert not console.is_terminal
    assert not console.human()


def test_a_record_for_people() -> None:
    line = human("warning", "kubelet: backoff", {"reason": "exited\nwith \x1b[2J code 1", "pid": None})
    assert line.endswith("] warning: kubelet: backoff reason=exited | with \ufffd[2J code 1 pid=None")
    assert human("error", "x", {}, colour=True).startswith("\x1b[31m[")


def records(path: Path) -> list[bytes]:
    return [b"<" + part for part in path.read_bytes().split(b"<")[1:]]


@pytest.mark.usefixtures("fresh")
def test_early_records_are_replayed_and_later_ones_follow(tmp_path: Path) -> None:
    kmsg, screen = tmp_path / "kmsg", tmp_path / "console"
    kmsg.touch()
    screen.touch()
    log.open_console(str(screen))
    log.info("early", number=1)
    log.debug("early detail")
    log.configure("json", str(kmsg))
    log.warning("late", path="/x")
    early, detail, late = records(kmsg)
    assert early.startswith(b"<30>initd: {")
    assert json.loads(early[PREFIX_BYTES:])["number"] == 1
    assert json.loads(detail[PREFIX_BYTES:])["level"] == "debug"
    assert late.startswith(b"<28>initd: {")
    assert json.loads(late[PREFIX_BYTES:])["path"] == "/x"
    lines = screen.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["event"] == "late"


@pytest.mark.usefixtures("fresh")
def test_a_record_the_kernel_would_refuse_goes_in_pieces(tmp_path: Path) -> None:
    kmsg = tmp_path / "kmsg"
    kmsg.touch()
    log.configure("auto", str(kmsg))
    log.error("long", text="ä\n" * 1000)
    pieces = records(kmsg)
    assert len(pieces) > 1
    assert all(len(piece) <= RECORD_BYTES + PREFIX_BYTES and b"\n" not in piece for piece in pieces)
    whole = b"".join(piece[PREFIX_BYTES:] for piece in pieces)
    assert json.loads(whole)["text"] == "ä\n" * 1000


@pytest.mark.usefixtures("fresh")
def test_no_record_is_printed_by_the_kernel_on_a_slow_console(tmp_path: Path) -> None:
    kmsg = tmp_path / "kmsg"
    kmsg.touch()
    log.configure("auto", str(kmsg))
    for write in (log.debug, log.info, log.warning, log.error):
        write("record")
    assert all(int(record[1:3]) & 7 >= 4 for record in records(kmsg))


@pytest.mark.usefixtures("fresh")
def test_a_record_never_raises(tmp_path: Path) -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    log.configure("auto", str(tmp_path / "missing"))
    log.info("unwritable")
    log.info("bad value", value=Bad())
    log.exception("failed", OSError(2, "No such file", "/x"))
    assert log._log.dropped == 4  # these, and that the kernel log cannot be opened


@pytest.mark.usefixtures("fresh")
def test_early_records_are_bounded() -> None:
    for number in range(2 * log.EARLY):
        log.info("flood", number=number)
    assert len(log._log.early) == log.EARLY
