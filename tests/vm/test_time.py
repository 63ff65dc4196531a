"""The clock of a node whose hardware's is wrong."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from qemu.net import Network
from qemu.probe import Probe
from tests.namespace import sntp_server
from tests.vm import manifests
from tests.vm.conftest import wait_for_pods

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qemu.machine import Machine
    from qemu.plugin import MachineFactory

HOST = "10.0.2.2"  # as a machine sees this one, whose loopback answers
YEAR_2001 = 978_307_200.0
CLOSE = 60.0  # seconds: a second emulated may take several


@pytest.fixture
def time_server() -> Iterator[None]:
    """An SNTP server on this machine's loopback."""
    with sntp_server.on_loopback():
        yield


@pytest.mark.usefixtures("time_server")
def test_a_clock_that_is_years_off_is_set_before_the_kubelet_starts(machine_factory: MachineFactory) -> None:
    machine = machine_factory(
        config=manifests.config(manifests.probe(), extra=f'[network]\nntp = ["{HOST}"]\n'),
        networks=(Network(forward=(manifests.PROBE_PORT,)),),
        qemu_arguments=("-rtc", "base=2001-01-01T00:00:00"),
    )
    machine.start()
    event = machine.wait_for(f"time:{HOST}", 180.0)
    assert event["set_seconds"] == pytest.approx(time.time() - YEAR_2001, abs=CLOSE)
    assert event["time"] == pytest.approx(time.time(), abs=CLOSE)
    machine.wait_for("ready", 180.0)
    with machine.client() as client:
        assert client.call("status")["time"] == f"synchronized from {HOST}"
        phases = {phase["name"]: phase for phase in client.call("boot.times")["phases"]}
        kubelet = next(service for service in client.call("services") if service["name"] == "kubelet")
    assert phases["time"]["status"] == "done"
    known = phases["time"]["start"] + phases["time"]["milliseconds"] / 1000
    assert phases["kubelet"]["start"] >= known - 0.001, "to what their milliseconds are rounded"
    assert kubelet["history"][0]["time"] == pytest.approx(time.time(), abs=5 * CLOSE)
    wait_for_pods(machine, "probe")
    assert Probe(machine)("clock") == {"synchronized": True}, "the kernel knows of it, and by it a pod that looks"


def test_a_node_without_time_servers_asks_nobody_and_waits_for_nobody(running: Machine) -> None:
    with running.client() as client:
        assert client.call("status")["time"] == "not asked"
        phases = {phase["name"]: phase for phase in client.call("boot.times")["phases"]}
    assert phases["time"]["milliseconds"] < 50
    assert phases["kubelet"]["waited_for"] != "time"
