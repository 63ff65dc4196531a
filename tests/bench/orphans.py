"""A flood of orphans on this machine: PID 1's loop, reaper, API and supervision as process 1 of a pid namespace, looked
at from outside.

Needs root.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from initd import cgroups, native
from initd.api.registry import METHODS, Peer, Role
from initd.api.session import Api
from initd.api.start import listen as serve_on
from initd.client.connection import Client
from initd.events import boottime
from initd.native import MountFlag, Spawn
from qemu.errors import HarnessError
from tests.bench.parse import start_time
from tests.bench.programs import compiled
from tests.namespace import calls
from tests.namespace.calls import Namespace
from tests.namespace.conftest import cgroup2_root, remove
from tests.namespace.supervision import PYTHON, TELL, Init
from tests.unit.api_support import listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")
RATE = 10_000  # orphans a second
SECONDS = 10
_ASKED = RATE * 21 // 20  # so that a moment in which the machine did something else does not count
_CALL_EVERY = 0.005
_LOOK_EVERY = 0.020
_DEADLINE = 60.0
_FIRST = 512  # bytes of the list of children: some eighty of them
_LISTENER = 3  # PID 1's descriptor


@dataclass(frozen=True)
class Flood:
    """Orphans made a second; the age in ms of the oldest zombie that was seen, at most 10 ms too high; zombies left a
    second after; ms of each API call, from when it was due; ms from the service's SIGKILL to its next exec, with the
    delay that supervision waits before it.
    """

    rate: float
    oldest: float
    left: int
    calls: list[float]
    back: float


def measure(folder: Path) -> Flood:
    """Let orphans rain on a PID 1 for SECONDS, and kill its service in the middle. Raises HarnessError."""
    if os.geteuid() != 0:
        raise HarnessError("orphans: a pid namespace needs root", "sudo -E make bench")
    program = compiled("orphans", folder)
    with _pid_1(folder) as (pid_1, group, path), Client(path) as client, multiprocessing.Pool(1) as pool:
        _wait("a service that runs", lambda: [entry for entry in _history(client) if entry["state"] == "running"])
        calls = pool.apply_async(_call, (path,))
        flood = _start_inside(pid_1, str(program), str(_ASKED * SECONDS), str(_ASKED))
        oldest = _watch(flood, program.name, pid_1.pid, SECONDS / 2)
        killed = boottime()
        os.kill(_main_process(group), signal.SIGKILL)
        oldest = max(oldest, _watch(flood, program.name, pid_1.pid, _DEADLINE))
        output, _ = flood.communicate()
        if flood.returncode != 0:
            raise HarnessError(f"{program.name} ended with {flood.returncode}")
        time.sleep(1.0)
        left = len(_zombies(pid_1.pid))
        (back,) = _wait("the killed service's next exec", lambda: _starts(client, killed))
        made, seconds = map(float, output.split())
        return Flood(made / seconds, oldest * 1000, left, calls.get(_DEADLINE), (back - killed) * 1000)


@contextmanager
def _pid_1(folder: Path) -> Iterator[tuple[native.Child, Path, str]]:
    """Give process 1 of a pid namespace, the cgroup of its service, and its API's path."""
    path = str(folder / "orphans.sock")
    tree = cgroup2_root() / f"initd-bench-{os.getpid()}"
    (tree / "probe").mkdir(parents=True)
    with listen(path) as listener:
        fds = {2: 2, _LISTENER: listener.fileno()}
        child = native.spawn(Spawn((), {}, fds=fds, namespaces=Namespace.PID | Namespace.MOUNT))
        if child.pid == 0:
            _be_pid_1(tree)
    try:
        yield child, tree / "probe", path
    finally:
        native.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        os.close(child.pidfd)
        remove(tree / "probe")
        remove(tree)


def _be_pid_1(tree: Path) -> NoReturn:
    async def serve() -> None:
        init = Init()
        listener = socket.socket(fileno=_LISTENER)
        await serve_on(Api(init.node, METHODS), listener, lambda _peer: Peer(0, 0, 0, Role.READER, "bench"))
        init.service((*PYTHON, TELL + "tell('READY=1')\nsignal.pause()\n"), notify=True).start()
        await asyncio.Event().wait()

    try:
        calls.prctl_set(calls.Prctl.PDEATHSIG, signal.SIGKILL)
        native.mount("", "/", "", MountFlag.REC | MountFlag.PRIVATE)
        native.mount(str(tree), cgroups.ROOT, "", MountFlag.BIND)
        native.mount("tmpfs", "/run", "tmpfs")
        os.makedirs("/run/initd/notify")
        native.mount("proc", "/proc", "proc")
        asyncio.run(serve())
    except BaseException:  # noqa: BLE001 what it raises ends it; nothing of what it forked may run twice
        traceback.print_exc()
    finally:
        os._exit(1)


def _start_inside(pid_1: native.Child, *argv: str) -> subprocess.Popen[str]:
    """Start a program in the pid namespace; it stays a child of this process."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    calls.setns(pid_1.pidfd, Namespace.PID)
    try:
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    finally:
        calls.setns(own, Namespace.PID)
        os.close(own)


def _watch(flood: subprocess.Popen[str], name: str, pid_1: int, seconds: float) -> float:
    """Look at the zombies until the flood ends, for so many seconds at most.

    Returns the greatest age of one of that name, in seconds since its start: as a process it lives for no time.
    """
    end, oldest = time.monotonic() + seconds, 0.0
    while flood.poll() is None and time.monotonic() < end:
        for stat in _zombies(pid_1, _FIRST):
            if f"({name})" in stat:
                oldest = max(oldest, boottime() - start_time(stat))
        time.sleep(_LOOK_EVERY)
    return oldest


def _zombies(pid: int, size: int = 1 << 20) -> list[str]:
    """What /proc/PID/stat says of each zombie that waits for its parent `pid` (proc_pid_stat(5)).

    `size` bounds how much of the list of children is read, in bytes: the kernel lists them in the order in which they
    came to their parent. Source: proc_tid_children(5).
    """
    children = _read(f"/proc/{pid}/task/{pid}/children", size).split(" ")[:-1]
    stats = [_read(f"/proc/{child}/stat", 1024) for child in children]
    return [stat for stat in stats if stat.rpartition(") ")[2].split()[:2] == ["Z", str(pid)]]


def _read(path: str, size: int) -> str:
    """The beginning of a file; empty if there is none any more."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(size).decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _call(path: str) -> list[float]:
    """Call `version` each _CALL_EVERY seconds for SECONDS; a call that is late for the one before counts from when it
    was due.
    """
    took = []
    with Client(path) as client:
        due = time.perf_counter()
        for _ in range(round(SECONDS / _CALL_EVERY)):
            time.sleep(max(0.0, due - time.perf_counter()))
            client.call("version")
            took.append((time.perf_counter() - due) * 1000)
            due += _CALL_EVERY
    return took


def _history(client: Client) -> list[dict[str, Any]]:
    (service,) = client.call("services")
    return list(service["history"])


def _starts(client: Client, since: float) -> list[float]:
    """When the service was started since a moment; both in seconds since boot."""
    return [e["monotonic"] for e in _history(client) if e["state"] == "starting" and e["monotonic"] > since]


def _main_process(group: Path) -> int:
    return int((group / "cgroup.procs").read_text())


def _wait(what: str, ask: Callable[[], list[T]]) -> list[T]:
    """Return ask()'s first answer that is not empty. Raises HarnessError in the end."""
    end = time.monotonic() + _DEADLINE
    while not (answer := ask()):
        if time.monotonic() > end:
            raise HarnessError(f"{what}: not within {_DEADLINE:g} s")
        time.sleep(_LOOK_EVERY)
    return answer
