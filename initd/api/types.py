"""What the API's answers look like: plain data, the same on the wire, in PID 1 and in a client.

Times called `time` are seconds since 1970 by the wall clock, `monotonic` and `since` are seconds since boot
(CLOCK_BOOTTIME); durations carry their unit in their name. `None` means "not known".
"""

from __future__ import annotations

from typing import Any, TypedDict


class VersionInfo(TypedDict):
    """Who answers: the build, and which boot of it."""

    version: str
    kernel: str
    python: str
    boot_id: str
    image: str | None


class Event(TypedDict, total=False):
    """One entry of the event log; `seq` counts from 1 and never repeats within a boot. Further keys depend on `kind`:

    phase: name, index, total, status (done, failed, skipped), milliseconds, waited_for, error;
    service: name, state, reason, and previous, pid of a new state or healthy of a change of liveness;
    node: phase, ready, reasons; network: ready, address, reasons; identity: name, address;
    device: action, subsystem, devpath, devname; images: images (imported); resumed: cause (what PID 1 died of);
    shutdown: action, by, deadline_seconds; cluster: joined, ready, cordoned, reason;
    drain: evicted (how many pods), left (those that were not, and why); turn: by, waits_for;
    time: server, reason, set_seconds (how far the clock was set, or null)
    """

    seq: int
    time: float
    monotonic: float
    kind: str


class ShutdownInfo(TypedDict):
    """A reboot or shutdown under way, who asked for it, and after how many seconds it is over at the latest."""

    action: str
    by: str
    seconds_left: float


class ClusterState(TypedDict):
    """How the node stands in its cluster: `joined` if its certificate is accepted and it is registered, `ready` if
    it is Ready; `reason` is why not, or what it may not do.
    """

    server: str
    joined: bool
    ready: bool
    cordoned: bool
    reason: str | None


class TurnInfo(TypedDict):
    """A reboot that waits until few enough others are down: who asked for it, and what it waits for."""

    by: str
    waits_for: str


class NodeStatus(TypedDict):
    """The node in one answer: `phase` is booting, running, maintenance, stopping or rescue; `identity` is persistent,
    with why if it is new, or ephemeral and why; `time` is "synchronized from SERVER", "not synchronized: REASON" or
    "not asked"; `failures` is what PID 1 died of in this boot, and was resumed after; `cluster` is null for a node that
    joins none.
    """

    name: str | None
    address: str | None
    phase: str
    ready: bool
    reasons: list[str]
    boot_id: str
    uptime_seconds: float
    config_source: str | None
    identity: str
    time: str
    failures: list[str]
    shutdown: ShutdownInfo | None
    cluster: ClusterState | None
    turn: TurnInfo | None


class LastBoot(TypedDict):
    """How the boot before this one ended, as far as the machine keeps it: `cause` is panic, watchdog, what was asked
    for and by whom ("reboot, asked for by API, uid 0 ..."), or null; `log` is the end of the kernel log with initd's.
    """

    cause: str | None
    log: str | None


class Transition(TypedDict):
    """One change of a service's state and why it came."""

    time: float
    monotonic: float
    state: str
    reason: str
    pid: int | None


class ServiceStatus(TypedDict):
    """One service: where it is, where it should be, and how it got there (newest last); argv is its next start's."""

    name: str
    argv: list[str]
    state: str
    desired: str
    healthy: bool
    pid: int | None
    restarts: int
    since: float
    status_text: str
    last_exit: str | None
    next_start_seconds: float | None
    history: list[Transition]
    last_lines: list[str]


class LogLine(TypedDict):
    """One line a service wrote; `dropped` counts lines lost before it."""

    time: float
    text: str
    dropped: int


class KernelRecord(TypedDict):
    """One record of the kernel log; `priority` is 0 (emergency) to 7 (debug)."""

    seq: int
    monotonic: float
    priority: int
    facility: int
    text: str


class MountInfo(TypedDict):
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    target: str
    source: str
    type: str
    flags: list[str]
    options: list[str]
    propagation: list[str]


class ProcessInfo(TypedDict):
    """One process, kernel threads left out; memory in bytes, CPU time in seconds."""

    pid: int
    parent: int
    name: str
    cgroup: str
    state: str
    resident_bytes: int
    cpu_seconds: float


class FileInfo(TypedDict):
    """One file; `mode` is its permissions in octal, as 0644, `modified` the time of its last change."""

    name: str
    type: str
    mode: str
    uid: int
    gid: int
    size_bytes: int
    modified: float


class LinkInfo(TypedDict):
    """One network link with the addresses ("10.0.2.15/24") and routes that the kernel has for it."""

    name: str
    index: int
    kind: str
    mac: str | None
    mtu: int
    up: bool
    carrier: bool
    addresses: list[str]
    routes: list[str]
    managed: bool


class NetworkState(TypedDict):
    """The network worker's whole view. `address` is the primary IPv4 or IPv6 address without a prefix length; `lease`
    is for the worker's next process.
    """

    ready: bool
    reasons: list[str]
    hostname: str | None
    address: str | None
    dns: list[str]
    ntp: list[str]
    lease: dict[str, Any] | None


class TimeState(TypedDict):
    """What the network worker heard of the time last: by how many seconds the clock is behind the server's, or why that
    is not known; when, in seconds since boot, it asks again, how long that is after the last time, and whom no more.
    """

    server: str | None
    offset: float | None
    reason: str | None
    due: float
    wait: float
    denied: list[str]


class DiskInfo(TypedDict):
    """One disk or partition; size in bytes."""

    name: str
    device: str
    size_bytes: int
    read_only: bool
    removable: bool
    partition_label: str | None
    type: str | None
    label: str | None
    uuid: str | None
    parent: str | None


class ContainerInfo(TypedDict):
    """One container of a pod; state is created, running, exited or unknown."""

    name: str
    id: str
    image: str
    state: str
    restarts: int
    created: float
    started: float | None
    exit_code: int | None
    reason: str


class PodInfo(TypedDict):
    """One pod as CRI has it; state is ready or notready."""

    namespace: str
    name: str
    uid: str
    id: str
    state: str
    address: str | None
    created: float
    containers: list[ContainerInfo]


class ImageInfo(TypedDict):
    """One container image; size in bytes."""

    id: str
    names: list[str]
    size_bytes: int
    pinned: bool


class ConfigInfo(TypedDict):
    """The configuration in force, the source that it came from, and what is wrong with it if anything is."""

    source: str | None
    text: str
    values: dict[str, Any]
    error: str | None


class BootPhase(TypedDict):
    """One phase of the boot; `start` is in seconds since PID 1's exec."""

    name: str
    index: int
    start: float
    milliseconds: float
    waited_for: str | None
    status: str
    error: str | None


class BootTimes(TypedDict):
    """The boot as it went; marks are seconds since PID 1's exec; `exec` is that moment in seconds since boot."""

    exec: float
    phases: list[BootPhase]
    marks: dict[str, float]
