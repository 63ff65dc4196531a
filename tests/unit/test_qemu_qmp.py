"""The QMP client against a monitor that the test plays."""

from __future__ import annotations

import json
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from qemu.errors import HarnessError, MachineStoppedError, MachineTimeoutError
from qemu.qmp import QmpClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}


class Monitor:
    """QEMU's side; answer() makes the replies to one command."""

    def __init__(self) -> None:
        near, self.socket = socket.socketpair()
        self.lines = self.socket.makefile("rb")
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.client = QmpClient(near, self.events.put)
        self.say(GREETING)

    def say(self, message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\r\n")

    def answer(self, reply: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> None:
        def run() -> None:
            for message in reply(json.loads(self.lines.readline())):
                self.say(message)

        threading.Thread(target=run).start()

    def end(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    made = Monitor()
    yield made
    made.client.close()
    made.end()


def test_a_command_returns_its_own_answer_with_events_between(monitor: Monitor) -> None:
    event = {"event": "RESET", "data": {"guest": True}}
    monitor.answer(lambda ask: [event, {"return": 1, "id": -1}, {"return": ask["arguments"], "id": ask["id"]}])
    assert monitor.client.execute("set_link", {"name": "nic0", "up": False}) == {"name": "nic0", "up": False}
    assert monitor.events.get(timeout=5) == event


def test_an_error_says_what_qemu_said(monitor: Monitor) -> None:
    monitor.answer(lambda ask: [{"error": {"class": "GenericError", "desc": "Device 'x' not found"}, "id": ask["id"]}])
    with pytest.raises(HarnessError, match="set_link: Device 'x' not found"):
        monitor.client.execute("set_link")


def test_no_answer_is_an_error_and_a_late_one_confuses_nobody(monitor: Monitor) -> None:
    with pytest.raises(MachineTimeoutError, match="stop"):
        monitor.client.execute("stop", timeout=0.01)
    late = json.loads(monitor.lines.readline())["id"]
    monitor.answer(lambda ask: [{"return": "late", "id": late}, {"return": "own", "id": ask["id"]}])
    assert monitor.client.execute("cont") == "own"


def test_qemus_end_ends_the_wait(monitor: Monitor) -> None:
    def vanish(_ask: object) -> list[dict[str, Any]]:
        monitor.socket.sendall(b'{"ret')
        monitor.socket.shutdown(socket.SHUT_RDWR)
        return []

    monitor.answer(vanish)
    with pytest.raises(MachineStoppedError):
        monitor.client.execute("quit", timeout=60)
    with pytest.raises(MachineStoppedError):
        monitor.client.execute("cont", timeout=60)
