"""The notify socket with real datagrams: credentials, passed descriptors, floods."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from initd.supervise.notify import BATCH, DATAGRAM_BYTES, NotifySocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Bench:
    """A notify socket and a client of it."""

    def __init__(self, path: str) -> None:
        self.notify = NotifySocket(path)
        self.client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.client.connect(path)
        self.client.setblocking(False)

    def receive(self, main: int | None) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        self.notify.receive(main, found.append)
        return found

    def close(self) -> None:
        self.client.close()
        self.notify._socket.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    path = tmp_path / "notify.sock"
    path.write_text("left over")
    made = Bench(str(path))
    yield made
    made.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_only_the_main_process_is_heard(bench: Bench) -> None:
    stranger = os.fork()
    if stranger == 0:
        try:
            bench.client.send(b"READY=1\nSTATUS=from a child")
        finally:
            os._exit(0)
    os.waitpid(stranger, 0)
    bench.client.send(b"READY=1")
    assert bench.receive(os.getpid()) == [{"READY": "1"}]
    assert bench.notify.refused == 1
    bench.client.send(b"READY=1")
    assert bench.receive(None) == []
    assert bench.receive(stranger) == []
    assert bench.notify.refused == 2


def test_what_an_ended_process_said_counts_for_its_pid_only(bench: Bench) -> None:
    child = os.fork()
    if child == 0:
        try:
            bench.client.send(b"STATUS=last words")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert bench.receive(child) == [{"STATUS": "last words"}]


def test_a_barrier_is_answered_by_closing_what_was_passed(bench: Bench) -> None:
    reader, writer = os.pipe()
    before = open_descriptors()
    socket.send_fds(bench.client, [b"BARRIER=1"], [writer])
    os.close(writer)
    assert bench.receive(os.getpid()) == [{"BARRIER": "1"}]
    assert os.read(reader, 1) == b"", "the sender waits for this"
    assert open_descriptors() == before - 1
    os.close(reader)


def test_no_descriptor_stays_open_however_many_are_passed_and_by_whom(bench: Bench) -> None:
    before = open_descriptors()
    for count in (1, 50, 200):
        socket.send_fds(bench.client, [b"FDSTORE=1"], [0] * count)
    assert len(bench.receive(os.getpid())) == 3
    socket.send_fds(bench.client, [b"FDSTORE=1"], [0] * 50)
    assert bench.receive(os.getppid()) == []
    assert open_descriptors() == before


def test_a_flood_is_taken_in_batches_and_bounded_by_the_kernel(bench: Bench) -> None:
    sent = received = 0
    for _ in range(5):
        try:
            while sent - received < 10_000:
                bench.client.send(b"STATUS=%d" % sent)
                sent += 1
        except BlockingIOError:
            pass
        messages = bench.receive(os.getpid())
        assert 0 < len(messages) <= BATCH
        received += len(messages)
    assert sent - received < 10_000, "the kernel holds the sender back"
    while messages := bench.receive(os.getpid()):
        received += len(messages)
    assert received == sent


def test_a_message_too_long_is_cut_and_an_empty_one_is_none(bench: Bench) -> None:
    bench.client.send(b"STATUS=" + b"x" * (2 * DATAGRAM_BYTES))
    bench.client.send(b"")
    first, second = bench.receive(os.getpid())
    assert len(first["STATUS"]) == DATAGRAM_BYTES - len("STATUS=")
    assert second == {}


def test_nobody_else_can_fill_its_queue_and_no_child_inherits_it(bench: Bench) -> None:
    assert stat.S_IMODE(os.stat(bench.notify.path).st_mode) == 0o600
    assert not os.get_inheritable(bench.notify.fileno())
