"""A node at rest, seen through the probe pod, so that PID 1 is not asked for anything; then its kubelet is killed."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qemu.machine import Machine
from qemu.net import Network
from qemu.probe import Probe
from tests.bench.boots import wait, web_pod
from tests.bench.parse import Use, use
from tests.vm import manifests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qemu.image import Bootable

_SAMPLE = 10.0  # seconds between two looks at the memory
PID_1 = "PID 1"
CGROUP = "/initd/"


@dataclass(frozen=True)
class Rest:
    """What each process of initd took over `seconds`: mean proportional set size in bytes (of a worker that was woken
    meanwhile, as much of it as its share of the time), and Use of those that ran all the time; then the milliseconds
    from a killed kubelet's exit to its exec.
    """

    seconds: float
    memory: Mapping[str, float]
    used: Mapping[str, Use]
    kubelet_back: float


def measure(image: Bootable, seconds: float, say: Callable[[str], None]) -> Rest:
    """Boot the node with DHCP, the web pod and the probe, and watch it. Raises HarnessError."""
    config = manifests.config(manifests.probe(), web_pod())
    networks = (Network(forward=(manifests.WEB_PORT, manifests.PROBE_PORT)),)
    with Machine("bench", image, config=config, networks=networks) as machine:
        machine.wait_for("ready", 180.0)
        probe = Probe(machine)
        wait(machine, "the probe", probe.processes)
        say("waiting until the workers have ended, as they do when there is nothing to do")
        wait(machine, "the end of the workers", lambda: list(_own(probe)) == [PID_1])
        say(f"at rest for {seconds:g} s")
        memory, used, passed = _watch(probe, seconds)
        say("killing the kubelet")
        return Rest(passed, memory, used, _kill_kubelet(machine, probe))


def _own(probe: Probe) -> dict[str, dict[str, Any]]:
    """PID 1 and its workers, by name."""
    found = {
        PID_1 if process["pid"] == 1 else process["cgroup"].removeprefix(CGROUP): process
        for process in probe.processes()
        if process["cgroup"].startswith(CGROUP)
    }
    if PID_1 not in found:
        raise ValueError("the probe does not see PID 1")
    return found


def _used(probe: Probe, pid: int) -> Use:
    """What all threads of a process used so far."""
    tasks = [f"/proc/{pid}/task/{name}" for name in probe("list", path=f"/proc/{pid}/task")["names"]]
    threads = [use(probe.read(f"{task}/status"), probe.read(f"{task}/schedstat")) for task in tasks]
    return Use(*map(sum, zip(*threads, strict=True)))


def _watch(probe: Probe, seconds: float) -> tuple[dict[str, float], dict[str, Use], float]:
    pids = {name: process["pid"] for name, process in _own(probe).items()}
    begun = time.monotonic()
    before = {name: _used(probe, pid) for name, pid in pids.items()}
    samples: list[dict[str, dict[str, Any]]] = []
    while not samples or time.monotonic() - begun < seconds:
        samples.append(_own(probe))
        time.sleep(max(0.0, min(_SAMPLE, begun + seconds - time.monotonic())))
    after = {name: _used(probe, pid) for name, pid in pids.items()}
    names = dict.fromkeys(name for sample in samples for name in sample)
    memory = {name: sum(sample[name]["pss"] for sample in samples if name in sample) / len(samples) for name in names}
    used = {name: after[name].since(before[name]) for name in pids}
    return memory, used, time.monotonic() - begun


def _kill_kubelet(machine: Machine, probe: Probe) -> float:
    """Kill the kubelet; return the milliseconds from its exit to its next exec, by the API's history."""

    def history() -> list[dict[str, Any]]:
        with machine.client() as client:
            service = next(entry for entry in client.call("services") if entry["name"] == "kubelet")
        return list(service["history"])

    before = history()[-1]
    probe("kill", pid=before["pid"], signal=int(signal.SIGKILL))

    def since() -> dict[str, float]:
        moments = {
            entry["state"]: entry["monotonic"] for entry in history() if entry["monotonic"] > before["monotonic"]
        }
        return moments if "starting" in moments else {}

    moments: dict[str, float] = wait(machine, "the kubelet's next exec", since)
    return (moments["starting"] - min(moments.values())) * 1000
