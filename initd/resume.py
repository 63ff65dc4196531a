"""PID 1's other lives: what it writes down, so that after a fault of its own it goes on where it was.

A fault (an exception that nothing caught, SIGSEGV and its like) makes it execute its program again, in the same
process: its children stay its children, and the descriptors that the checkpoint names stay open (native/survive.c). The
next life makes its services of the checkpoint, runs the phases that every life needs and those that were not run yet,
and starts its workers anew. A checkpoint is written at each change of a service and, once there is a loop, soon after
any other: a phase may be run again that was done already, so each bears that. It lies in a memfd, where no full file
system keeps it from being written and no pod can change it; one write(2) makes it whole or leaves the one before.
"""

import binascii
import marshal
import os
from typing import Any

from initd import cgroups, log, native, services
from initd.config.sources import Found
from initd.node import Node
from initd.supervise.process import find
from initd.supervise.service import Service
from initd.supervise.states import HAS_PROCESS, State

PROGRAM = "/sbin/init"
REPORT, CHECKPOINT = "INITD_REPORT", "INITD_CHECKPOINT"  # variables that name memfds
HEADER = b"initd checkpoint 2"  # with the version of what follows
EVENTS = 200
FAILURES = 10
FAILURE_BYTES = 16 << 10
RESUMED = "PID 1 was resumed"

# What is kept as it is, all of it plain values: of the node, and of a service.
NODE = (
    "exec_at", "boot_id", "command_line", "phase", "faults", "boot_phases", "listener", "rescue", "config_error",
    "name", "address", "identity", "network", "failures", "watchdog", "last_boot", "cluster", "turn",
    "clock", "believed",
)  # fmt: skip
SERVICE = (
    "argv", "healthy", "restarts", "status_text", "last_exit", "watchdog_seconds", "watchdog_at", "trouble_since",
    "retired", "_deadline", "_spawned", "_ready_at", "_backoff_delay", "_start_by", "_errno", "_oom_kills",
)  # fmt: skip


def guard(node: Node, *, resuming: bool) -> None:
    """From now on a fault of PID 1's own begins another life, which finds what it needs."""
    report, checkpoint = (_memfd(variable, resuming=resuming) for variable in (REPORT, CHECKPOINT))
    native.survive(PROGRAM, report, resuming=resuming)
    scheduled = False

    def change() -> None:
        nonlocal scheduled
        scheduled = False
        save(node, report, checkpoint)

    def change_soon() -> None:
        nonlocal scheduled
        if node.loop is not None and not scheduled:
            scheduled = True
            node.loop.call_soon(change)

    node.on_change = change
    node.events.watch(change_soon)
    if resuming:
        node.failures = [_read_report(report)]


def _memfd(variable: str, *, resuming: bool) -> int:
    """The memfd that the life before named in the environment, or a new one."""
    if resuming:
        try:
            descriptor = int(os.environ[variable])
            os.set_inheritable(descriptor, False)
        except (KeyError, ValueError, OSError):
            pass  # a new one will do: it is empty
        else:
            return descriptor
    descriptor = os.memfd_create(variable)
    os.environ[variable] = str(descriptor)
    return descriptor


def _read_report(report: int) -> str:
    """What the life before died of; the report is empty afterwards."""
    text = os.pread(report, FAILURE_BYTES, 0).decode(errors="replace").strip()
    os.ftruncate(report, 0)
    os.lseek(report, 0, os.SEEK_SET)
    return text or "nothing was reported"


def save(node: Node, report: int, checkpoint: int) -> None:
    """Write a checkpoint. Never raises: without it the node goes on as well as before."""
    every = {**node.services, **node.workers}
    pipes = [service.output.reader for service in every.values()]
    descriptors = [report, checkpoint, *pipes, *(service.output.writer for service in every.values())]
    descriptors += [service.notify.fileno() for service in every.values() if service.notify is not None]
    watchdog = node.watchdog and node.watchdog[0]
    descriptors += [fd for fd in (node.listener, node.rescue, watchdog) if fd is not None]
    end = node.shutdown
    state = {
        "node": {name: getattr(node, name) for name in NODE},
        "found": node.found and tuple(node.found),
        "events": node.events.last(EVENTS),
        "services": {name: _describe(service) for name, service in node.services.items()},
        "workers": {name: _describe(worker) for name, worker in node.workers.items()},
        "shutdown": end and (end.action, end.by, end.deadline),
    }
    try:
        native.keep(descriptors, -1 if node.rescue is None else node.rescue)
        os.environ["INITD_PIPES"] = " ".join(map(str, pipes))
        for variable, descriptor in (("INITD_LISTENER", node.listener), ("INITD_WATCHDOG", watchdog)):
            if descriptor is not None:
                os.environ[variable] = str(descriptor)
        if node.config is not None:
            os.environ["INITD_RESCUE_SECONDS"] = str(node.config.node.rescue_seconds)
        data = marshal.dumps(state)
        whole = b"%b %d %d\n%b" % (HEADER, len(data), binascii.crc32(data), data)
        os.posix_fallocate(checkpoint, 0, len(whole))  # or there is no memory for it, and the last one stays
        os.pwrite(checkpoint, whole, 0)
    except (OSError, ValueError) as error:
        log.warning("no checkpoint written", error=str(error))


def _describe(service: Service) -> dict[str, Any]:
    process = service.process
    return {
        "state": service.state.value,
        "process": process and (process.pid, process.started),
        "history": list(service.history),
        "failures": service.backoff.failures,
        "output": (service.output.reader, service.output.writer),
        "notify": -1 if service.notify is None else service.notify.fileno(),
        **{name: getattr(service, name) for name in SERVICE},
    }


def load(checkpoint: int) -> dict[str, Any]:
    """Return the last checkpoint. Raises ValueError if it is not one of this version, whole; OSError."""
    head, _, data = os.pread(checkpoint, os.fstat(checkpoint).st_size, 0).partition(b"\n")
    name, length, checksum = [*head.rsplit(b" ", 2), b"", b""][:3]
    data = data[: int(length)] if length.isdigit() else b""  # a longer one may have been there before
    if name != HEADER or length != b"%d" % len(data) or checksum != b"%d" % binascii.crc32(data):
        raise ValueError(f"not a whole checkpoint of this version: {head[:40]!r}")
    state: dict[str, Any] = marshal.loads(data)  # noqa: S302 PID 1 wrote it
    return state


def restore(node: Node) -> dict[str, Any]:
    """Make `node` what it was when the last checkpoint was written; its processes follow, see `adopt`.

    Raises ValueError, OSError, and whatever a checkpoint that fits the version and not the code leads to.
    """
    state, failures = load(int(os.environ[CHECKPOINT])), node.failures
    for name in NODE:
        setattr(node, name, state["node"][name])
    node.failures = [*node.failures, *failures][-FAILURES:]
    node.found = state["found"] and Found(*state["found"])
    node.events.resume(*state["events"])
    specs = {spec.name: spec for spec in services.SERVICES}
    for name, kept in state["services"].items():
        _restore(node.add_service(specs[name], kept["output"], kept["notify"]), kept)
    for name, kept in state["workers"].items():
        _restore(node.add_worker(name, kept["output"]), kept)
    log.error("PID 1 failed and was resumed", cause=failures[-1])
    node.events.emit("resumed", cause=failures[-1])
    return state


def _restore(service: Service, kept: dict[str, Any]) -> None:
    for descriptor in (*kept["output"], kept["notify"]):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    service.state = State(kept["state"])
    service.history.extend(kept["history"])
    service.backoff.failures = kept["failures"]
    for name in SERVICE:
        setattr(service, name, kept[name])


def adopt(node: Node, state: dict[str, Any]) -> None:
    """Find the services' processes again, now that there is a loop; start the workers anew; go on with a shutdown."""
    for name, kept in state["services"].items():
        _adopt(node.services[name], kept["process"])
    for name in state["workers"]:
        worker = node.workers[name]
        if worker.process is None:  # else a phase of this life has started it
            _end(worker)  # its link was the last life's
            worker.restart(RESUMED)
            if worker.state in HAS_PROCESS and worker.process is None:
                worker.lost(f"ended when {RESUMED}")
    from initd import shutdown, turns  # noqa: PLC0415 they import asyncio

    if state["shutdown"] is not None:
        shutdown.begin(node, shutdown.Shutdown(*state["shutdown"]))
    elif node.turn is not None:
        node.spawn_task(lambda: turns.wait(node), turns.TASK)


def _adopt(service: Service, process: tuple[int, int] | None) -> None:
    if process is not None:
        try:
            service.adopt(find(process[0], service.spec.cgroup, process[1]))
        except LookupError as error:
            log.warning(f"{service.spec.name}: not found again", pid=process[0], reason=str(error))
    if service.process is None:
        _end(service)  # what was started after the checkpoint must not meet its successor
        if service.state in HAS_PROCESS:
            service.lost(f"ended when {RESUMED}")


def _end(service: Service) -> None:
    try:
        if cgroups.populated(service.spec.cgroup):
            cgroups.kill(service.spec.cgroup)
    except OSError as error:
        log.error(f"{service.spec.name}: what is left of it cannot be ended", error=str(error))
