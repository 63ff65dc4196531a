"""What clients ask for, and what they may not do to each other. What dies and comes back: test_faults.py."""

from __future__ import annotations

import select
import socket
import time
from itertools import count
from typing import TYPE_CHECKING

from initd.api.protocol import Request, encode
from qemu import bridge
from qemu.mux import MAX_CALLS
from tests.vm.conftest import service, until

if TYPE_CHECKING:
    import pytest

    from initd.client.connection import Client
    from qemu.machine import Machine


def ready(machine: Machine) -> bool:
    """Say whether the node is ready."""
    with machine.client() as client:
        return bool(client.call("status")["ready"])


def test_restart_by_the_api_is_in_the_history(running: Machine) -> None:
    before = service(running, "kubelet")
    with running.client() as client:
        assert client.call("service.restart", "kubelet") is True
    until("kubelet back", lambda: (now := service(running, "kubelet"))["healthy"] and now["pid"] != before["pid"])
    reasons = [entry["reason"] for entry in service(running, "kubelet")["history"]]
    assert any("restart requested by" in reason for reason in reasons)


def test_garbage_and_floods_on_the_bridge_leave_the_node_ready(running: Machine) -> None:
    """Many clients of the bridge at once, some of them talking nonsense: only those are cut off."""
    path = str(running.console.parent / "api.sock")
    with running.client() as healthy:
        liars = []
        for garbage in (b"\xc1" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x94\x00\x01\xa7version", b"\xdd\xff\xff\xff\xff"):
            liar = socket.socket(socket.AF_UNIX)
            liar.settimeout(30)
            liar.connect(path)
            liar.sendall(garbage)
            liars.append(liar)
        for _ in range(200):
            assert healthy.call("version")["boot_id"]
        for liar in liars:
            liar.close()
    assert ready(running)


def test_who_asks_for_much_and_never_reads_is_cut_off_and_costs_no_one_else(
    running: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's log over and over, on the serial line that all clients of the bridge share."""
    monkeypatch.setattr(bridge, "CLIENT_BUFFER", 1 << 20)  # enough for 16 logs
    with running.client() as healthy, socket.socket(socket.AF_UNIX) as deaf:
        before = resident(healthy)
        deaf.settimeout(30)
        deaf.connect(str(running.console.parent / "api.sock"))
        hung_up = select.poll()
        hung_up.register(deaf, 0)
        numbers = count(1)
        slowest = 0.0
        end = time.monotonic() + 60.0
        while not hung_up.poll(0):
            assert time.monotonic() < end, "is still served"
            try:
                deaf.sendall(b"".join(encode(Request(next(numbers), "kernel.log", [])) for _ in range(MAX_CALLS)))
            except OSError:
                break
            asked = time.monotonic()
            assert healthy.call("version")["boot_id"] == running.journal.boot_id
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest < 5.0, "all others wait for who does not read"
        assert resident(healthy) < before + (4 << 20)


def resident(client: Client) -> int:
    """Return how much memory of PID 1 is in use, in bytes."""
    return int(next(process["resident_bytes"] for process in client.stream("processes") if process["pid"] == 1))
