"""PID 1 of the image that ships fails, by registers that the probe changes, until it is rescued."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from qemu.net import Network
from qemu.probe import Probe, http_get
from tests.vm import manifests
from tests.vm.conftest import FORWARD, until, wait_for_pods

if TYPE_CHECKING:
    from qemu.plugin import MachineFactory

RUNNING = ("containerd", "kubelet", "containerd-shim", "web", "pause")


def test_pid_1_fails_twice_and_is_resumed_and_the_third_time_is_rescued(machine_factory: MachineFactory) -> None:
    config = manifests.config(manifests.probe(), manifests.web())
    machine = machine_factory(config=config, networks=(Network(forward=FORWARD),))
    machine.start()
    machine.wait_for("ready", 180.0)
    wait_for_pods(machine, "probe", "web")
    probe = Probe(machine)

    def pids() -> set[tuple[str, int]]:
        return {(process["comm"], process["pid"]) for process in probe.processes() if process["comm"] in RUNNING}

    before = pids()
    assert {comm for comm, _ in before} == set(RUNNING)
    with machine.client() as client:
        history = {entry["name"]: entry["history"] for entry in client.call("services")}
    for kind, where, cause in (
        ("jump", "run_forever", "SIGSEGV at instruction 0x0, address 0x0, code 1"),
        ("error", "run_forever", "OSError: [Errno 9] Bad file descriptor"),
    ):
        seen = machine.last_seq
        assert probe("fault", pid=1, kind=kind) == {"error": None}
        resumed = machine.wait_for(lambda event: event["kind"] == "resumed", 30.0, seen, "another life of PID 1")
        assert resumed["seq"] > seen, "one log through all lives"
        assert where in resumed["cause"]
        assert cause in resumed["cause"]
        machine.wait_for("ready", 60.0, seen)
        assert pids() == before
    assert machine.boots == 1
    assert http_get(machine.port(manifests.WEB_PORT), "/")[0] == 200
    with machine.client() as client:
        services = {entry["name"]: entry for entry in client.call("services")}
        for name in ("containerd", "kubelet"):
            assert services[name]["history"] == history[name], "nothing happened to it"
            assert (services[name]["state"], services[name]["restarts"]) == ("running", 0)
        assert client.call("links")
        status = client.call("status")
    assert [cause.splitlines()[-1] for cause in status["failures"]] == [
        "SIGSEGV at instruction 0x0, address 0x0, code 1",
        "OSError: [Errno 9] Bad file descriptor",
    ]

    assert probe("fault", pid=1, kind="jump") == {"error": None}
    until("rescue", lambda: "initd rescue:" in machine.console_tail(), 30.0)
    assert pids() == before, "pods and services go on without PID 1"
    assert http_get(machine.port(manifests.WEB_PORT), "/")[0] == 200
    with machine.next_boot():
        assert probe("kill", pid=1, signal=int(signal.SIGINT))["error"] is None
    machine.wait_for("ready", 180.0)
