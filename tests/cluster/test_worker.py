"""The worker that speaks with the API server: the only process of initd that has TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemu.probe import Probe
from tests.vm.conftest import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qemu.machine import Machine


def test_only_the_cluster_worker_has_ssl(nodes: Mapping[str, Machine]) -> None:
    machine, probe = nodes["node-1"], Probe(nodes["node-1"])

    def with_ssl() -> set[str]:
        found = {
            process["comm"]: process["pid"] for process in probe.processes() if process["cgroup"].startswith("/initd")
        }
        return {name for name, pid in found.items() if "libssl" in probe.read(f"/proc/{pid}/maps")}

    with machine.client() as client:
        for method in ("links", "disks", "images"):  # the others are awake, too
            client.call(method)
        client.call("service.restart", "cluster")
    assert until("the worker has ssl", with_ssl) == {"initd-cluster"}
    assert "/usr/sbin/init" in probe.read("/proc/1/maps"), "what is read is PID 1"
    assert "libssl" not in probe.read("/proc/1/maps")
