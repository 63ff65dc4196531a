"""The notify socket with real datagrams: credentials, passed descriptors, floods; services with systemd's client."""

from __future__ import annotations

import asyncio
import ctypes.util
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from initd import log, native
from initd.supervise.notify import BATCH, DATAGRAM_BYTES, NotifySocket
from initd.supervise.states import State
from tests.namespace.supervision import PYTHON, TELL, replaced
from tests.unit.api_support import until
from tests.unit.core_support import states

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.namespace.supervision import Init, Scene

FLOOD = 50_000


class Bench:
    """A notify socket and a client of it."""

    def __init__(self, path: str) -> None:
        self.notify = NotifySocket(path)
        self.client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.client.connect(path)
        self.client.setblocking(False)

    def receive(self, main: int | None) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        self.notify.receive(lambda pid: pid == main, found.append)
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


def descriptors() -> int:
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
    reader, writer = os.pipe2(os.O_NONBLOCK)
    before = descriptors()
    socket.send_fds(bench.client, [b"BARRIER=1"], [writer])
    os.close(writer)
    bench.receive(os.getpid())
    assert os.read(reader, 1) == b"", "the sender waits for this"
    assert descriptors() == before - 1
    os.close(reader)


def test_no_descriptor_stays_open_however_many_are_passed_and_by_whom(bench: Bench) -> None:
    before = descriptors()
    for count in (1, 50, 200):
        socket.send_fds(bench.client, [b"FDSTORE=1"], [0] * count)
    assert len(bench.receive(os.getpid())) == 3
    socket.send_fds(bench.client, [b"FDSTORE=1"], [0] * 50)
    assert bench.receive(os.getppid()) == []
    assert descriptors() == before


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


def test_what_is_too_long_or_no_message_is_refused(bench: Bench) -> None:
    for data in (b"STATUS=" + b"x" * DATAGRAM_BYTES, b"", b"READY", b"STATUS=\xff"):
        bench.client.send(data)
    longest = "x" * (DATAGRAM_BYTES - len("STATUS="))
    bench.client.send(f"STATUS={longest}".encode())
    assert bench.receive(os.getpid()) == [{"STATUS": longest}]
    assert bench.notify.refused == 4


def test_what_is_refused_is_logged_but_not_each_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[object] = []
    monkeypatch.setattr(log, "warning", lambda _event, **fields: lines.append(fields["count"]))
    for _ in range(100):
        bench.client.send(b"READY=1")
        bench.receive(None)
    assert lines == [1, 2, 4, 8, 16, 32, 64]


def test_nobody_else_can_fill_its_queue_and_no_child_inherits_it(bench: Bench) -> None:
    assert stat.S_IMODE(os.stat(bench.notify.path).st_mode) == 0o600
    assert not os.get_inheritable(bench.notify.fileno())


def test_libsystemd_is_understood_and_its_barrier_answered(scene: Scene) -> None:
    name = ctypes.util.find_library("systemd")
    assert name is not None, "libsystemd.so.0 is missing: apt-get install libsystemd0"
    script = (
        "import ctypes, os, signal\n"
        f"lib = ctypes.CDLL({name!r})\n"
        "for text in (b'MAINPID=%d' % os.getpid(), b'STATUS=warming up', b'WATCHDOG_USEC=7000000', b'X_OWN=1'):\n"
        "    assert lib.sd_notify(0, text) > 0, text\n"
        "print('barrier', lib.sd_notify_barrier(0, ctypes.c_uint64(20_000_000)), flush=True)\n"
        "assert lib.sd_notify(0, b'READY=1') > 0\n"
        "signal.pause()\n"
    )

    async def act(node: Init) -> tuple[str, float, list[str], list[str]]:
        service = node.service((*PYTHON, script), notify=True)
        service.start()
        await until(lambda: service.state is State.RUNNING)
        await until(lambda: service.status()["last_lines"])
        return service.status_text, service.watchdog_seconds, states(service), service.status()["last_lines"]

    assert scene(act) == ("warming up", 7.0, ["starting", "running"], ["barrier 1"])


def test_the_package_sdnotify_is_understood(scene: Scene) -> None:
    script = (
        "import signal, sdnotify\n"
        "notifier = sdnotify.SystemdNotifier(debug=True)\n"
        "for text in ('STATUS=caching', 'READY=1', 'STOPPING=1'):\n"
        "    notifier.notify(text)\n"
        "signal.pause()\n"
    )

    async def act(node: Init) -> tuple[list[str], list[str], str]:
        service = node.service(("/usr/bin/python3", "-I", "-c", script), notify=True)
        service.start()
        await until(lambda: len(service.history) > 3)
        return service.status()["last_lines"], states(service)[:4], service.status_text

    assert scene(act) == ([], ["starting", "running", "failing", "backoff"], "caching")


def reap_unheard(node: Init, pid: int) -> None:
    """Await the end of a process and reap it, before the loop reads what it said."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    node.node.reaper.reap()


HAND_OVER = TELL + (
    "source, sink = os.pipe()\n"
    "child = os.fork()\n"
    "if child == 0:\n"
    "    os.close(sink)\n"
    "    os.read(source, 1)\n"
    "    tell('STATUS=from the child')\n"
    "    signal.pause()\n"
    "tell(f'MAINPID={child}\\nREADY=1')\n"
)


def test_a_service_hands_itself_over_to_its_child(scene: Scene) -> None:
    """As a daemon does that forks and ends."""

    async def act(node: Init) -> tuple[list[str], list[str], str | None]:
        service = node.service((*PYTHON, HAND_OVER), notify=True)
        service.start()
        assert service.process is not None
        first = service.process.pid
        reap_unheard(node, first)
        assert service.process is not None
        assert service.process.pid != first
        await until(lambda: service.status_text == "from the child")
        before = states(service)
        native.pidfd_send_signal(service.process.pidfd, signal.SIGKILL)
        await until(lambda: service.state is not State.RUNNING)
        return before, states(service), service.last_exit

    assert scene(act) == (["starting", "running"], ["starting", "running", "backoff"], "killed by SIGKILL")


@pytest.mark.parametrize("waits", [False, True], ids=["leaves a zombie", "waits for it"])
def test_the_end_of_a_main_process_that_is_anothers_child_is_seen(scene: Scene, waits: bool) -> None:
    parent = "os.close(sink)\n" + ("os.waitpid(child, 0)\n" if waits else "") + "while True: signal.pause()\n"

    async def act(node: Init) -> tuple[list[str], str | None, int]:
        service = node.service((*PYTHON, HAND_OVER + parent), notify=True)
        service.start()
        await until(lambda: service.status_text == "from the child")
        before = descriptors()
        assert service.process is not None
        native.pidfd_send_signal(service.process.pidfd, signal.SIGKILL)
        await until(lambda: service.state is State.BACKOFF)
        return states(service), service.last_exit, descriptors() - before

    assert scene(act) == (["starting", "running", "backoff"], "ended; its parent knows how", -1)


def test_a_main_process_that_is_none_of_its_own_is_ignored(scene: Scene) -> None:
    script = TELL + (
        "for lie in (0, 1, 2, OUTSIDER, 4194304, 2**31, 2**63, 10**20 - 1):\n"
        "    tell(f'MAINPID={lie}')\n"
        "tell('READY=1')\n"
        "signal.pause()\n"
    )

    async def act(node: Init) -> tuple[bool, int, int]:
        outsider = native.spawn(native.Spawn(("/bin/sleep", "1000"), {}))
        service = node.service((*PYTHON, script.replace("OUTSIDER", str(outsider.pid))), notify=True)
        service.start()
        assert service.process is not None
        first = service.process.pid
        before = descriptors()
        await until(lambda: service.state is State.RUNNING)
        assert service.notify is not None
        return replaced(service, first), service.notify.refused, descriptors() - before

    assert scene(act) == (False, 8, 0)


def test_last_words_are_heard(scene: Scene) -> None:
    async def act(node: Init) -> str | None:
        service = node.service((*PYTHON, TELL + "tell('ERRNO=28')\nos._exit(1)"), notify=True)
        service.start()
        assert service.process is not None
        reap_unheard(node, service.process.pid)
        return service.last_exit

    assert scene(act) == "exited with code 1 (ENOSPC)"


def test_a_flood_from_what_a_service_left_behind_holds_up_neither_the_loop_nor_a_restart(scene: Scene) -> None:
    script = TELL + (
        "try:\n"
        "    os.mkdir('/run/flooded')\n"
        "except FileExistsError:\n"
        "    tell('READY=1')\n"
        "    signal.pause()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "    client.connect(os.environ['NOTIFY_SOCKET'])\n"
        f"    for _ in range({FLOOD}):\n"
        "        client.send(b'READY=1')\n"
        "    os._exit(0)\n"
        "signal.pause()\n"
    )

    async def act(node: Init) -> tuple[int, int, int, list[str]]:
        service = node.service((*PYTHON, script), notify=True, main_only=True)
        service.start()
        notify, most, ready_at, last = service.notify, 0, 0, 0
        assert notify is not None
        while notify.refused < FLOOD:  # each pass is one turn of the loop
            await asyncio.sleep(0)
            most, last = max(most, notify.refused - last), notify.refused
            if notify.refused > FLOOD // 10 and service.restarts == 0 and service.state is State.STARTING:
                service.restart()
            if service.state is State.RUNNING and not ready_at:
                ready_at = notify.refused
        return most, ready_at, notify.refused, states(service)

    most, ready_at, refused, history = scene(act)
    assert 0 < most <= 2 * BATCH, "when the process ends its last words are looked for besides"
    assert FLOOD // 10 < ready_at < FLOOD, "the service is up again while the flood goes on"
    assert refused == FLOOD
    assert history == ["starting", "restarting", "starting", "running"]
