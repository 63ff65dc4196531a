"""What dies comes back, and what should not notice does not."""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from itertools import count
from typing import TYPE_CHECKING

import pytest

from initd.api.protocol import Request, encode
from qemu import bridge
from qemu.mux import MAX_CALLS
from qemu.probe import http_get
from tests.vm import manifests
from tests.vm.conftest import pods, service, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initd.client.connection import Client
    from qemu.machine import Machine
    from qemu.probe import Probe


def uids(machine: Machine) -> dict[str, tuple[str, list[str]]]:
    """Return each pod's UID and its containers' ids."""
    return {
        name: (pod["uid"], [container["id"] for container in pod["containers"]]) for name, pod in pods(machine).items()
    }


def kill_service(machine: Machine, probe: Probe, name: str) -> None:
    """SIGKILL a service's main process and wait until another one runs and is healthy."""
    before = service(machine, name)
    assert probe("kill", pid=before["pid"], signal=int(signal.SIGKILL)) == {"error": None}

    def back() -> bool:
        now = service(machine, name)
        return bool(now["healthy"]) and now["pid"] != before["pid"]

    until(f"{name} back", back)
    after = service(machine, name)
    assert after["restarts"] == before["restarts"] + 1
    assert "SIGKILL" in after["last_exit"]
    states = [entry["state"] for entry in after["history"]][-4:]
    assert states == ["running", "backoff", "starting", "running"]


def test_kubelet_killed_comes_back_and_pods_keep_their_uids(running: Machine, probe: Probe) -> None:
    before = uids(running)
    kill_service(running, probe, "kubelet")
    assert uids(running) == before


@pytest.fixture
def requests(running: Machine) -> Iterator[list[str]]:
    """Ask the web pod without a pause while the test runs; holds what went wrong."""
    port = running.port(manifests.WEB_PORT)
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                status, _ = http_get(port, "/")
            except OSError as error:
                failures.append(str(error))
            else:
                if status != 200:
                    failures.append(f"status {status}")
            stop.wait(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    yield failures
    stop.set()
    thread.join()


def test_containerd_killed_comes_back_and_pods_go_on_serving(
    running: Machine, probe: Probe, requests: list[str]
) -> None:
    before = uids(running)
    kill_service(running, probe, "containerd")
    until("pods as before", lambda: uids(running) == before)
    assert requests == []


@pytest.mark.parametrize(("name", "method"), [("network", "links"), ("devices", "disks"), ("containers", "images")])
def test_worker_killed_comes_back(running: Machine, probe: Probe, name: str, method: str) -> None:
    with running.client() as client:
        assert client.call(method), "starts it if it rests"
        pid = service(running, name)["pid"]
        assert probe("kill", pid=pid, signal=int(signal.SIGKILL)) == {"error": None}
        until(f"{name} back", lambda: service(running, name)["pid"] not in {None, pid})
        until("ready", lambda: ready(running))
        assert client.call("status")["address"] == "10.0.2.15"
        assert client.call(method)


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


def test_a_flood_of_garbage_on_pid_1s_socket_is_closed_and_changes_nothing(running: Machine, probe: Probe) -> None:
    """Straight to PID 1: 300 connections from inside the node, none of them with a frame."""
    with running.client() as client:
        before = client.call("status")
        flood = probe("flood", path="/run/initd/api.sock")
        assert flood == {"connected": 300, "closed": 300}
        after = client.call("status")
    assert (after["boot_id"], after["ready"]) == (before["boot_id"], True)
    assert running.verify()["boot_id"] == before["boot_id"]


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
