"""Faults by name, done to an unmodified image from outside: by QEMU's monitor, or by the probe (qemu/probe.py).

    with faults.inject("link-cut", machine, probe):
        machine.wait_for(...)
    # what can be undone is undone here

FAULTS says what each does. Those that crash PID 1 need the probe's ptrace(2) on x86-64, nothing in PID 1.
"""

from __future__ import annotations

import contextlib
import errno
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from qemu.errors import HarnessError
from qemu.probe import Probe, container, pod

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qemu.machine import Machine

Act: TypeAlias = Callable[["Machine", Probe], object]

API_SOCKET = "/run/initd/api.sock"
BOMB = "/etc/kubernetes/manifests/bomb"
FLOOD, CONNECTIONS = 300, 5000
ROOT_DEVICE = "/machine/peripheral/root-device/virtio-backend"  # whose disk it is, in QEMU's tree of objects
YEAR = 365 * 24 * 3600
# A role is a leaf of the cgroup tree.
ROLES = {"containerd": "/runtime", "kubelet": "/kubelet", "shim": "/shims"}
WHO = {
    "containerd": "containerd",
    "kubelet": "the kubelet",
    "shim": "a pod's shim",
    "network": "the network worker",
    "devices": "the devices worker",
    "containers": "the containers worker",
}
# With the method of the API that asks it.
WORKERS = {"network": "links", "devices": "disks", "containers": "images"}


@dataclass(frozen=True)
class Fault:
    """What it is in a few words, how it is done, and, unless it passes by itself, undone."""

    says: str
    do: Act
    undo: Act | None = None


@contextlib.contextmanager
def inject(name: str, machine: Machine, probe: Probe) -> Iterator[Any]:
    """Do a fault of FAULTS, give what its `do` returned to the body, and undo it afterwards."""
    fault = FAULTS[name]
    done = fault.do(machine, probe)
    try:
        yield done
    finally:
        if fault.undo is not None:
            fault.undo(machine, probe)


def _unless_gone(act: Act) -> Act:
    """Who was stopped may have been ended since, and another one may run, which SIGCONT does not hurt."""

    def do(machine: Machine, probe: Probe) -> None:
        with contextlib.suppress(HarnessError):
            act(machine, probe)

    return do


def find(machine: Machine, probe: Probe, role: str, *, wake: bool = True) -> int:
    """Return the pid of a role: its oldest process; rather a shim that is not the probe's own. A worker that rests is
    started, by a call that it answers, unless wake is False. Raises HarnessError.
    """
    if role in WORKERS and wake:
        with machine.client() as client:
            client.call(WORKERS[role])
    cgroup = ROLES.get(role, f"/initd/{role}")
    processes = probe.processes()
    found = [process["pid"] for process in processes if process["cgroup"] == cgroup]
    if not found:
        raise HarnessError(f"no process is {role}: none in the cgroup {cgroup}")
    own = {process["ppid"] for process in processes if process["comm"] == "probe"}
    return int(min(found, key=lambda pid: (pid in own, pid)))


def send(role: str, number: signal.Signals) -> Act:
    """Return what sends a signal to the process of that role, and returns its pid."""

    def do(machine: Machine, probe: Probe) -> int:
        pid = find(machine, probe, role, wake=number != signal.SIGCONT)
        probe.do("kill", pid=pid, signal=int(number))
        return pid

    return do


def fault(kind: str) -> Act:
    """Return what does this kind of fault to PID 1, see native/probe.c."""
    return lambda _, probe: probe.do("fault", pid=1, kind=kind)


def panic(_machine: Machine, probe: Probe) -> None:
    """Let the kernel panic, which nobody lives to answer for."""
    with contextlib.suppress(OSError):
        probe("fault", timeout=2.0, pid=1, kind="panic")


def throttle(bytes_per_second: int) -> Act:
    """Return what limits the root disk's speed; 0 is no limit."""
    limits = {"bps": bytes_per_second, **dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)}
    return lambda machine, _: machine.qmp("block_set_io_throttle", {"id": ROOT_DEVICE, **limits})


def _swap(machine: Machine, node: Mapping[str, object]) -> None:
    """Put another node below the root disk's, as QEMU allows while it is in use."""
    name = f"fault{len(machine.qmp('query-named-block-nodes'))}"  # nodes are never removed, so that it is a new one
    machine.qmp("blockdev-add", {"node-name": name, "read-only": True, **node})
    options = {"driver": "raw", "node-name": "root", "read-only": True, "discard": "unmap", "file": name}
    machine.qmp("blockdev-reopen", {"options": [options]})


def _root_file(machine: Machine) -> dict[str, object]:
    file = next(node["file"] for node in machine.qmp("query-named-block-nodes") if node["node-name"] == "root")
    if file.startswith("json:"):  # as it is while the disk is broken
        file = json.loads(file.removeprefix("json:"))["file"]["image"]["filename"]
    return {"driver": "file", "filename": file}


def break_disk(machine: Machine, _probe: Probe) -> None:
    """Let every request to the root disk fail with EIO; what is in the node's page cache stays readable."""
    image = {**_root_file(machine), "read-only": True}
    _swap(machine, {"driver": "blkdebug", "image": image, "inject-error": [{"event": "none", "errno": errno.EIO}]})


def mend_disk(machine: Machine, _probe: Probe) -> None:
    """Undo break_disk."""
    _swap(machine, _root_file(machine))


def connect(command: str, count: int) -> Act:
    """Return what opens so many connections to the API's socket, with garbage (flood) or silent ones (hold)."""
    return lambda _, probe: probe.do(command, path=API_SOCKET, count=count)


def let_go(_machine: Machine, probe: Probe) -> None:
    """End the probe's processes that hold connections: all but the first of its pod."""
    own = [process for process in probe.processes() if process["comm"] == "probe"]
    for process in own:
        if process["ppid"] in {other["pid"] for other in own}:
            probe("kill", pid=process["pid"], signal=int(signal.SIGKILL))


def force(method: str) -> Act:
    """Return what asks for an end that waits for no one: reboot, or shutdown."""

    def do(machine: Machine, _probe: Probe) -> None:
        with machine.client() as client:
            client.call(method, True)

    return do


def bomb(word: str) -> Act:
    """Return what puts a static pod on the node that takes all memory (eat) or all pids (fork) that it can."""
    text = json.dumps(pod("bomb", container("bomb", "probe", word)))
    return lambda _, probe: probe.do("put", path=BOMB, text=text)


def fill(path: str) -> Act:
    """Return what makes a file as large as its file system has room for."""
    return lambda _, probe: probe.do("fill", path=path)


def jump(seconds: int) -> Act:
    """Return what lets the clock jump."""
    return lambda _, probe: probe.do("clock", seconds=seconds)


def remove(path: str) -> Act:
    """Return what removes a file of the node."""
    return lambda _, probe: probe.do("remove", path=path)


_KILL, _STOP, _CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT

FAULTS: Mapping[str, Fault] = {
    **{f"kill-{role}": Fault(f"SIGKILL to {who}", send(role, _KILL)) for role, who in WHO.items()},
    **{
        f"stop-{role}": Fault(f"SIGSTOP to {who}", send(role, _STOP), _unless_gone(send(role, _CONT)))
        for role, who in WHO.items()
    },
    "fill-var": Fault("/var has no room left", fill("/var/fill"), remove("/var/fill")),
    "fill-run": Fault("/run has no room left", fill("/run/fill"), remove("/run/fill")),
    "link-cut": Fault("the network cable is pulled out", lambda m, _: m.set_link(False), lambda m, _: m.set_link(True)),
    "disk-slow": Fault("the root disk reads 2 MiB a second", throttle(2 << 20), throttle(0)),
    "disk-stalled": Fault("the root disk answers nothing", throttle(1), throttle(0)),
    "disk-broken": Fault("the root disk fails each read (EIO)", break_disk, mend_disk),
    "clock-forward": Fault("the clock jumps a year ahead", jump(YEAR), jump(-YEAR)),
    "clock-back": Fault("the clock jumps a year back", jump(-YEAR), jump(YEAR)),
    "pause": Fault("the machine is paused", lambda m, _: m.pause(), lambda m, _: m.resume()),
    "force-reboot": Fault("`initctl reboot --force`", force("reboot")),
    "force-shutdown": Fault("`initctl shutdown --force`", force("shutdown")),
    "power": Fault("the power button is pressed", lambda m, _: m.power_button()),
    "panic": Fault("the kernel panics", panic),
    "crash-c": Fault("PID 1 jumps to address 0 (SIGSEGV)", fault("jump")),
    "crash-python": Fault("an exception reaches PID 1's top", fault("error")),
    "hang": Fault("PID 1 hangs", fault("hang")),
    "flood": Fault(f"{FLOOD} connections to the API's socket, with garbage", connect("flood", FLOOD)),
    "connections": Fault(f"{CONNECTIONS} silent connections to the API's socket", connect("hold", CONNECTIONS), let_go),
    "memory-bomb": Fault("a pod takes all memory", bomb("eat"), remove(BOMB)),
    "fork-bomb": Fault("a pod forks without end", bomb("fork"), remove(BOMB)),
}
