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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from initd.api.protocol import ApiError, Decoder, Request, Response, encode
from qemu.errors import HarnessError
from qemu.probe import Probe, container, pod

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qemu.machine import Machine

Act: TypeAlias = Callable[["Machine", Probe], object]

API_SOCKET = "/run/initd/api.sock"
BOMB = "/etc/kubernetes/manifests/bomb"
FLOOD, CONNECTIONS, DATAGRAMS = 300, 5000, 100_000
CRASHES = 3  # within a minute are too many
RESUME_SECONDS = 30.0
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
    """Return what sends a signal to the process of that role, and returns its `pid` and `at`, in seconds since boot."""

    def do(machine: Machine, probe: Probe) -> dict[str, Any]:
        pid = find(machine, probe, role, wake=number != signal.SIGCONT)
        return probe.do("kill", pid=pid, signal=int(number))

    return do


def tell(*numbers: int) -> Act:
    """Return what sends signals to PID 1, one after the other."""

    def do(_machine: Machine, probe: Probe) -> None:
        for number in numbers:
            probe.do("kill", pid=1, signal=int(number))

    return do


def fault(kind: str) -> Act:
    """Return what does this kind of fault to PID 1, see native/probe.c."""
    return lambda _, probe: probe.do("fault", pid=1, kind=kind)


def crash_worker(machine: Machine, probe: Probe) -> None:
    """Crash a copy of PID 1, in C."""
    probe.do("fault", pid=find(machine, probe, "network"), kind="jump")


def crash_often(machine: Machine, probe: Probe) -> None:
    """Crash PID 1, each time that it goes on, until it is given no other life."""
    for _ in range(CRASHES - 1):
        seen = machine.last_seq
        probe.do("fault", pid=1, kind="jump")
        machine.wait_for(lambda event: event["kind"] == "resumed", RESUME_SECONDS, seen, "another life of PID 1")
    probe.do("fault", pid=1, kind="jump")


def ask(probe: Probe, method: str, *params: object) -> Any:
    """Call a method of the API on the node's own socket, the only one that rescue has. Raises ApiError."""
    frame = encode(Request(1, method, list(params)))
    said = probe.do("call", path=API_SOCKET, frame=frame.hex())["text"].encode("latin-1")
    match Decoder().feed(said):
        case [Response(_, None, result)]:
            return result
        case [Response(_, error, _)]:
            raise ApiError.from_wire(error)
    raise HarnessError(f"{method}: found {said[:40]!r}, expected an answer")


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


def lose_disk(machine: Machine, probe: Probe) -> None:
    """Break the disk when nothing of it is in memory but what is in use."""
    probe.do("put", path="/proc/sys/vm/drop_caches", text="3")
    break_disk(machine, probe)


def connect(command: str, count: int) -> Act:
    """Return what opens so many connections to the API's socket, with garbage (flood) or silent ones (hold)."""
    return lambda _, probe: probe.do(command, path=API_SOCKET, count=count)


def let_go(_machine: Machine, probe: Probe) -> None:
    """End the probe's processes that hold connections: all but the first of its pod."""
    own = [process for process in probe.processes() if process["comm"] == "probe"]
    for process in own:
        if process["ppid"] in {other["pid"] for other in own}:
            probe("kill", pid=process["pid"], signal=int(signal.SIGKILL))


def notify(_machine: Machine, probe: Probe) -> Future[dict[str, Any]]:
    """Tell PID 1 so often that the kubelet stops, by who is not the kubelet; what it gives comes when all are sent."""
    path = "/run/initd/notify/kubelet.sock"
    return ThreadPoolExecutor(1).submit(probe.do, "datagrams", path=path, count=DATAGRAMS)


def end(method: str, *, force: bool) -> Act:
    """Return what asks for an end: reboot, or shutdown; force: one that waits for no one."""

    def do(machine: Machine, _probe: Probe) -> None:
        with machine.client() as client:
            client.call(method, force)

    return do


def ctrl_alt_del(machine: Machine, _probe: Probe) -> None:
    """Press the keys."""
    machine.qmp("send-key", keys=[{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")])


def bomb(word: str) -> Act:
    """Return what puts a static pod on the node that takes all memory (eat) or all pids (fork) that it can."""
    text = json.dumps(pod("bomb", container("bomb", "probe", word)))
    return put(BOMB, text)


def put(path: str, text: str) -> Act:
    """Return what writes a file of the node."""
    return lambda _, probe: probe.do("put", path=path, text=text)


def limit(soft: int | str) -> Act:
    """Return what says how many descriptors PID 1 may have; "max" is as many as before."""
    return lambda _, probe: probe.do("limit", pid=1, soft=soft)


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
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_IGNORED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)
_PIDS = "/sys/fs/cgroup/initd/pids.max"

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
    "disk-gone": Fault("the same, and what is not in use is not in memory", lose_disk, mend_disk),
    "clock-forward": Fault("the clock jumps a year ahead", jump(YEAR), jump(-YEAR)),
    "clock-back": Fault("the clock jumps a year back", jump(-YEAR), jump(YEAR)),
    "pause": Fault("the machine is paused", lambda m, _: m.pause(), lambda m, _: m.resume()),
    "reboot": Fault("`initctl reboot`", end("reboot", force=False)),
    "shutdown": Fault("`initctl shutdown`", end("shutdown", force=False)),
    "force-reboot": Fault("`initctl reboot --force`", end("reboot", force=True)),
    "force-shutdown": Fault("`initctl shutdown --force`", end("shutdown", force=True)),
    "local-reboot": Fault("`initctl reboot --force` on the node itself", lambda _, probe: ask(probe, "reboot", True)),
    "power": Fault("the power button is pressed", lambda m, _: m.power_button()),
    "ctrl-alt-del": Fault("Ctrl-Alt-Del is pressed", ctrl_alt_del),
    "signal-int": Fault("SIGINT to PID 1", tell(signal.SIGINT)),
    "signal-pwr": Fault("SIGPWR to PID 1", tell(signal.SIGPWR)),
    "signal-rtmin+4": Fault("SIGRTMIN+4 to PID 1", tell(signal.SIGRTMIN + 4)),
    "signal-rtmin+5": Fault("SIGRTMIN+5 to PID 1", tell(signal.SIGRTMIN + 5)),
    "signals-crash": Fault("SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE to PID 1, by a process", tell(*_CRASHES)),
    "signals-other": Fault("SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE to PID 1", tell(*_IGNORED)),
    "panic": Fault("the kernel panics", panic),
    "crash-c": Fault("PID 1 jumps to address 0 (SIGSEGV)", fault("jump")),
    "crash-python": Fault("an exception reaches PID 1's top", fault("error")),
    "crash-often": Fault(f"PID 1 crashes {CRASHES} times within a minute", crash_often),
    "crash-worker": Fault("the network worker jumps to address 0 (SIGSEGV)", crash_worker),
    "hang": Fault("PID 1 hangs", fault("hang")),
    "flood": Fault(f"{FLOOD} connections to the API's socket, with garbage", connect("flood", FLOOD)),
    "connections": Fault(f"{CONNECTIONS} silent connections to the API's socket", connect("hold", CONNECTIONS), let_go),
    "notify": Fault(f"{DATAGRAMS:,} datagrams to the kubelet's notify socket, by another process", notify),
    "descriptors": Fault("PID 1 can open no more descriptors (RLIMIT_NOFILE)", limit(0), limit("max")),
    "pids": Fault("PID 1 and its workers can fork no more (pids.max)", put(_PIDS, "0"), put(_PIDS, "max")),
    "busy": Fault(
        "/var cannot be unmounted, the kernel holds a file there", lambda _, p: p.do("busy", path="/var/busy")
    ),
    "memory-bomb": Fault("a pod takes all memory", bomb("eat"), remove(BOMB)),
    "fork-bomb": Fault("a pod forks without end", bomb("fork"), remove(BOMB)),
}
