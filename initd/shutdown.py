"""The end: drain, stop the kubelet, the pods, containerd, everything; unmount, sync, reboot(2).

One total deadline, known at the start. Each step has its share and then escalates, so that none can hold up the next.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

from initd import cgroups, log, mounts, native
from initd.api.protocol import ApiError
from initd.events import boottime
from initd.files import read
from initd.supervise.states import State
from initd.supervise.workers import WorkerGoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from initd.node import Node
    from initd.supervise.service import Service

DEADLINE = 30.0
FORCED = 1.5
SYNC_SECONDS = 3.0
RESERVE = 8.0  # for what comes after the pods
POLL = 0.05
DRAIN_LEAST = 2.0  # seconds that it makes sense to begin with
WORKER_SECONDS = 0.5  # until one that has ended is asked for again
NOT_READY_SECONDS = 5.0
KEPT_MOUNTS = {"/", "/proc", "/sys", "/dev", "/run"}
COMMANDS = {"reboot": native.RebootCommand.RESTART, "shutdown": native.RebootCommand.POWER_OFF}


class Shutdown:
    """One shutdown under way; `deadline` is in seconds since boot and only ever comes nearer."""

    def __init__(self, action: str, by: str, deadline: float) -> None:
        self.action = action
        self.by = by
        self.deadline = deadline

    def left(self) -> float:
        """Seconds until the deadline; 0 when it is over."""
        return max(self.deadline - boottime(), 0.0)


def request(node: Node, action: str, by: str, *, force: bool = False) -> float:
    """Begin to reboot or shut down, or, if that has begun, make it no slower; returns the seconds it may take.

    `force` waits for no one, and decides what it is from now on: after `FORCED` seconds at most reboot(2) is called.
    """
    seconds = FORCED if force else _seconds(node) + _drain_seconds(node)
    running = node.shutdown
    if running is not None:
        running.deadline = min(running.deadline, boottime() + seconds)
        if force:
            running.action, running.by = action, by
        log.info(f"{running.action}: asked again", by=by, seconds_left=round(running.left(), 1))
        return running.left()
    begin(node, Shutdown(action, by, boottime() + seconds))
    log.info(f"{action} requested", by=by, deadline_seconds=seconds)
    node.events.emit("shutdown", action=action, by=by, deadline_seconds=seconds)
    node.enter("stopping")
    return seconds


def _seconds(node: Node) -> float:
    return DEADLINE if node.config is None else node.config.node.shutdown_seconds


def _drain_seconds(node: Node) -> float:
    cluster = node.config.cluster if node.config is not None and "cluster" in node.workers else None
    return cluster.drain_seconds if cluster is not None else 0


def begin(node: Node, shutdown: Shutdown) -> None:
    """Go through the steps, beside the loop. What waits for its turn to reboot does so no longer."""
    node.shutdown, node.turn = shutdown, None
    node.end_task("turn")
    if node.loop is not None:
        # First of all: whatever the steps do or fail to do, the end comes.
        _watch_deadline(node, shutdown)
        node.spawn_task(_run(node, shutdown), "shutdown")


def _watch_deadline(node: Node, shutdown: Shutdown) -> None:
    if node.loop is None:
        return
    if shutdown.left() > 0:
        node.loop.call_later(min(shutdown.left(), 1.0), _watch_deadline, node, shutdown)
        return
    log.warning("shutdown deadline passed")
    _finish(shutdown)


async def _run(node: Node, shutdown: Shutdown) -> None:
    for step in STEPS:
        try:
            await step(node, shutdown)
        except Exception as failure:  # noqa: BLE001 a step that fails must not keep the machine up, nor skip the next
            log.exception("shutdown step failed", failure, step=step.__name__)
    _finish(shutdown)


async def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Whether `done` came true in time."""
    end = boottime() + seconds
    while not done():
        if boottime() >= end:
            return False
        await asyncio.sleep(POLL)
    return True


async def drain(node: Node, shutdown: Shutdown) -> None:
    """Have the node cordoned and its pods evicted, while the kubelet lives: it heeds budgets and runs preStop hooks."""
    end = boottime() + min(shutdown.left() - _seconds(node), _drain_seconds(node))
    kubelet = node.services.get("kubelet")
    if node.cluster is None or not node.cluster["joined"] or kubelet is None or kubelet.state is not State.RUNNING:
        return
    try:
        result = await _drained(node, shutdown, end)
    except (ApiError, asyncio.CancelledError) as error:
        log.warning("not drained", reason=str(error) or "no time")
        return
    write = log.warning if result["left"] else log.info
    write("drained", **result)
    node.events.emit("drain", **result)


async def _drained(node: Node, shutdown: Shutdown, end: float) -> Any:
    """What the worker says of the drain; one that dies at it has a successor, who goes on. Raises ApiError, and
    CancelledError when there is no time.
    """
    while True:
        seconds = end - boottime()
        if seconds < DRAIN_LEAST:
            raise asyncio.CancelledError
        # The worker may have to be started first, which is not in the time that it is given.
        call = asyncio.ensure_future(node.workers["cluster"].call("drain", seconds - 1, timeout=seconds + 1))
        # A request that comes meanwhile may have no time for this.
        await _wait(lambda: call.done() or shutdown.left() < _seconds(node) - 2, seconds + 2)  # noqa: B023 of this turn
        call.cancel()
        try:
            return await call
        except WorkerGoneError:
            await asyncio.sleep(WORKER_SECONDS)


async def stop_kubelet(node: Node, shutdown: Shutdown) -> None:
    """Stop every service but containerd, which the pods still need."""
    for service in list(node.services.values()):
        if service.spec.name != "containerd":
            await _stop(service, shutdown.left() / 3)


async def not_ready(node: Node, shutdown: Shutdown) -> None:
    """Say to the cluster that the node is not ready, now that its kubelet is gone."""
    if node.cluster is not None and node.cluster["joined"]:
        seconds = min(shutdown.left() / 4, NOT_READY_SECONDS)
        try:
            await node.workers["cluster"].call("not_ready", f"{shutdown.action} of the node", timeout=seconds)
        except ApiError as error:
            log.warning("the cluster does not know that the node is not ready", reason=error.message)


async def end_pods(node: Node, shutdown: Shutdown) -> None:
    """Each pod is given its own grace period, up to what the steps after this one need; then cgroup.kill, also for the
    shims. preStop hooks are the kubelet's, which is gone.
    """
    seconds = shutdown.left() - RESERVE
    containers = node.workers.get("containers")
    if seconds > 0 and containers is not None and cgroups.populated("kubepods"):
        try:
            await containers.call("stop", seconds, timeout=seconds + 1)
        except Exception as failure:  # noqa: BLE001 the worker or containerd is not there: the pods end all the same
            log.warning("pods not stopped by containerd", error=str(failure))
            _signal(cgroups.processes("kubepods"), "kubepods")
            await _wait(lambda: not cgroups.populated("kubepods"), shutdown.left() / 2)
    cgroups.kill("kubepods")
    cgroups.kill("shims")
    await _wait(lambda: not cgroups.populated("kubepods") and not cgroups.populated("shims"), 2.0)


async def stop_services(node: Node, shutdown: Shutdown) -> None:
    """Stop what is left: containerd, and the workers, which PID 1 does not wait for here."""
    for worker in list(node.workers.values()):
        worker.retire("shutdown")
    for service in list(node.services.values()):
        await _stop(service, shutdown.left() / 2)


async def end_all(_node: Node, shutdown: Shutdown) -> None:
    """Whoever else is left, anywhere: SIGTERM, then SIGKILL. Kernel threads are in no way touched by either."""

    def others() -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal() and _is_user_process(int(name))]

    _signal(others())
    if not await _wait(lambda: not others(), min(shutdown.left() / 2, 2.0)):
        for pid in others():
            _send(pid, signal.SIGKILL)
        await _wait(lambda: not others(), 1.0)


async def sync(_node: Node, shutdown: Shutdown) -> None:
    """Write everything back, before an umount that may never end."""
    await _in_child(os.sync, min(shutdown.left() / 2, SYNC_SECONDS))


async def unmount(_node: Node, shutdown: Shutdown) -> None:
    """umount2(2) of all there is, and sync(2) of what that left."""
    await _in_child(_unmount_all, min(shutdown.left(), SYNC_SECONDS))


STEPS = (drain, stop_kubelet, not_ready, end_pods, stop_services, end_all, sync, unmount)


async def _in_child(work: Callable[[], None], seconds: float) -> None:
    """A file system that never answers blocks the child, not PID 1."""
    child = 0

    def ended() -> bool:
        nonlocal child
        if child == 0:
            try:
                child = os.fork()
            except OSError:
                return False  # no memory or no pid now: tried again in a moment
            if child == 0:
                try:
                    work()
                finally:
                    os._exit(0)  # whatever happened: there is one PID 1
        return not os.path.exists(f"/proc/{child}/exe")

    if not await _wait(ended, seconds):
        log.warning("file systems not synced or unmounted in time", seconds=round(seconds, 1))


async def _stop(service: Service, seconds: float) -> None:
    service.retire("shutdown")
    if not await _wait(lambda: service.state is State.DOWN, seconds):
        log.warning(f"{service.spec.name}: killed, it did not stop in time", seconds=round(seconds, 1))
        cgroups.kill(service.spec.cgroup)
        await _wait(lambda: service.state is State.DOWN, 1.0)


def _is_user_process(pid: int) -> bool:
    if pid == 1:
        return False
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False  # a kernel thread, a zombie, or gone
    return True


def _signal(pids: list[int], cgroup: str = "") -> None:
    for pid in pids:
        _send(pid, signal.SIGTERM, cgroup)
        _send(pid, signal.SIGCONT, cgroup)


def _send(pid: int, number: signal.Signals, cgroup: str = "") -> None:
    """Signal a process, if it is in `cgroup`: a pid that was listed there may have become another's meanwhile."""
    try:
        descriptor = native.pidfd_open(pid)
    except OSError:
        return  # ended already
    try:
        if not cgroup or f"{read(f'/proc/{pid}/cgroup')}/".startswith(f"0::/{cgroup}/"):
            native.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass  # ended in between
    finally:
        os.close(descriptor)


def _unmount_all() -> None:
    """Unmount what can be, the deepest first; what is busy is detached. The root stays as it was: read-only."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        targets = [mounts.unescape(line.split(" ")[4]) for line in file]
    for target in sorted(targets, key=lambda path: path.count("/"), reverse=True):
        if target in KEPT_MOUNTS:
            continue
        for flags in (native.UmountFlag.NOFOLLOW, native.UmountFlag.DETACH | native.UmountFlag.NOFOLLOW):
            try:
                native.umount(target, flags)
            except OSError as error:
                log.debug("not unmounted", target=target, error=str(error))
            else:
                break
    os.sync()


def _finish(shutdown: Shutdown) -> None:
    log.info(f"{shutdown.action}, asked for by {shutdown.by}")  # what the next boot looks for (watchdog.py)
    try:
        native.reboot(COMMANDS[shutdown.action])
    except OSError as error:
        log.error("reboot failed; restarting the machine instead", error=str(error))
        native.reboot(native.RebootCommand.RESTART)
