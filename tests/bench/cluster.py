"""A node in a cluster: how long from power-on until it works, and what it costs beside the pods."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qemu.cluster import Cluster
from qemu.probe import PORT, Probe, container, pod
from qemu.probe import manifest as probe_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qemu.image import Bootable

DEADLINE = 300.0
SETTLE = 30.0  # seconds after the first pod, for what else starts with a node
NODE, FIRST = "node-1", "first"
CGROUPS = ("initd", "runtime", "shims", "kubelet")
ALL = "all but pods"


@dataclass(frozen=True)
class Joined:
    """Seconds from QEMU's start to the node's Ready condition and to the first scheduled pod's Running, as the API
    server saw them; then by cgroup, and of all but pods, CPU in milliseconds a second and memory in bytes.
    """

    ready: float
    running: float
    cpu: Mapping[str, float]
    memory: Mapping[str, float]


def measure(image: Bootable, seconds: float, say: Callable[[str], None]) -> Joined:
    """Let a pod wait for a node, start the node, and watch it at rest for `seconds`. Raises HarnessError."""
    say("a cluster: starting its control plane")
    with Cluster(f"bench-{os.getpid()}", image) as cluster:
        plane = cluster.control_plane
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        plane.wait("the service account of pods", lambda: plane.api.get(account), DEADLINE)
        cluster.apply(pod(FIRST, container(FIRST, "web", "serve", "8080")))
        config = cluster.config(NODE, static_pods=[probe_pod()])
        machine = cluster.machine(NODE, config, forward=(PORT,))
        say("a cluster: a node starts")
        machine.start()
        cluster.wait_ready(NODE, DEADLINE)
        ready = time.monotonic() - machine.started
        plane.wait(
            "the first pod Running", lambda: _runs(plane.api.get(f"/api/v1/namespaces/default/pods/{FIRST}")), DEADLINE
        )
        running = time.monotonic() - machine.started
        probe = Probe(machine)
        plane.wait("the probe", probe.processes, DEADLINE)
        time.sleep(SETTLE)
        say(f"a cluster: a node at rest for {seconds:g} s")
        begun, before = time.monotonic(), _cpu(probe)
        time.sleep(seconds)
        passed, after = time.monotonic() - begun, _cpu(probe)
        cpu = {name: (after[name] - before[name]) / 1000 / passed for name in after}
        return Joined(ready, running, cpu, _memory(probe))


def _runs(found: Mapping[str, Any]) -> bool:
    return bool(found["status"].get("phase") == "Running")


def _cpu(probe: Probe) -> dict[str, float]:
    """Microseconds of CPU so far: cpu.stat of each cgroup. The kernel's own threads are in none of them, and what the
    root's says is counted in another way, by ticks.
    """

    def used(cgroup: str) -> float:
        return float(re.findall(r"usage_usec (\d+)", probe.read(f"/sys/fs/cgroup/{cgroup}/cpu.stat"))[0])

    found = {name: used(name) for name in CGROUPS}
    return found | {ALL: sum(found.values())}


def _memory(probe: Probe) -> dict[str, float]:
    """Bytes that are charged to each cgroup: its processes', their files' in the page cache, the kernel's for them."""
    found = {name: float(probe.read(f"/sys/fs/cgroup/{name}/memory.current")) for name in CGROUPS}
    return found | {ALL: sum(found.values())}
