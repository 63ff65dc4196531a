"""Fixtures for tests that need root and namespaces.

    def test_something(isolated: Isolated) -> None:
        def body() -> str:
            native.mount("tmpfs", "/mnt", "tmpfs")      # seen by nobody else
            return Path("/proc/self/mountinfo").read_text()
        assert "/mnt" in isolated(body)

`isolated(body)` runs `body` as process 1 of new pid, mount, net, uts and ipc namespaces: private mounts, a /proc of its
own, loopback down. What it returns is pickled and returned; what it raises fails the test, with its traceback. All
processes that it started die with it. `cgroup` is the path of a fresh leaf in the host's v2 tree, wherever that is
mounted. `scene(act)` runs a coroutine function as process 1, with a loop, a reaper and services (supervision.py).
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from initd import cgroups, native
from initd.native import MountFlag
from tests.namespace import calls
from tests.namespace.calls import Namespace
from tests.namespace.supervision import Init

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.namespace.supervision import Scene

T = TypeVar("T")
DEADLINE = 60.0  # seconds
SIGKILL = 9
KINDS = Namespace.PID | Namespace.MOUNT | Namespace.NET | Namespace.UTS | Namespace.IPC


class Isolated(Protocol):
    """Runs a function in fresh namespaces and returns what it returns."""

    def __call__(self, body: Callable[[], T], deadline: float = DEADLINE) -> T: ...


def _run(body: Callable[[], object], report: int) -> None:
    """Be process 1 of the namespaces: report (True, value) or (False, traceback)."""
    calls.prctl_set(calls.Prctl.PDEATHSIG, SIGKILL)  # it must not outlive the process that waits for it
    try:
        native.mount("", "/", "", MountFlag.REC | MountFlag.PRIVATE)
        native.mount("proc", "/proc", "proc", MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC)
        outcome: tuple[bool, object] = (True, body())
    except BaseException:  # noqa: BLE001 - an assertion, or pytest's own exceptions: all fail the test
        outcome = (False, traceback.format_exc())
    with open(report, "wb") as stream:
        stream.write(pickle.dumps(outcome))


def _enter(body: Callable[[], object], report: int) -> None:
    """Make the namespaces; the first child after that is process 1 of the new pid namespace."""
    calls.prctl_set(calls.Prctl.PDEATHSIG, SIGKILL)
    calls.unshare(KINDS)
    pid = os.fork()
    if pid == 0:
        _run(body, report)
        os._exit(0)
    os.close(report)
    os.waitpid(pid, 0)


def _receive(source: int, deadline: float) -> bytes:
    """Everything up to the end of the pipe; empty if it is not there in time."""
    chunks: list[bytes] = []
    while select.select([source], [], [], deadline)[0]:
        chunk = os.read(source, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
    return b""


def run_isolated(body: Callable[[], T], deadline: float = DEADLINE) -> T:
    """What the fixture `isolated` gives, for use without it."""
    source, report = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(source)
            _enter(body, report)
        finally:
            os._exit(0)
    os.close(report)
    try:
        data = _receive(source, deadline)
    finally:
        os.close(source)
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)
    if not data:
        pytest.fail(f"the isolated process died or took more than {deadline:.0f} s")
    succeeded, value = pickle.loads(data)  # noqa: S301 - our own child's
    if not succeeded:
        pytest.fail(f"in the isolated process:\n{value}", pytrace=False)
    result: Any = value
    return result  # type: ignore[no-any-return]


@pytest.fixture
def isolated() -> Isolated:
    """`isolated(body)`: see the top of this file."""
    return run_isolated


def cgroup2_root() -> Path:
    """Where the v2 tree is mounted: not always /sys/fs/cgroup on a host with both versions."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, fstype, *_ = line.split()
        if fstype == "cgroup2":
            return Path(target)
    pytest.fail("no cgroup2 mount in /proc/self/mounts: mount -t cgroup2 none /sys/fs/cgroup/unified")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A fresh leaf of the v2 tree; killed and removed afterwards."""
    path = cgroup2_root() / f"initd-test-{os.getpid()}"
    path.mkdir()
    yield path
    remove(path)


def remove(path: Path) -> None:
    """Kill what is left in a cgroup and remove it, with those below it."""
    (path / "cgroup.freeze").write_text("0")
    (path / "cgroup.kill").write_text("1")
    events = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    poller = select.poll()
    poller.register(events, select.POLLPRI)
    while "populated 1" in os.pread(events, 4096, 0).decode():
        if not poller.poll(10_000):
            pytest.fail(f"{path} still has processes after 10 s")
    os.close(events)
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)


@pytest.fixture
def scene(isolated: Isolated, cgroup: Path) -> Scene:
    """Run a coroutine of a fresh Init as process 1, with a /run and a cgroup tree of its own; returns its result."""

    def run(act: Callable[[Init], Coroutine[Any, Any, Any]]) -> Any:
        def body() -> Any:
            native.mount(str(cgroup), cgroups.ROOT, "", MountFlag.BIND)
            native.mount("tmpfs", "/run", "tmpfs")
            os.makedirs("/run/initd/notify")

            async def whole() -> Any:
                async with asyncio.timeout(30):
                    return await act(Init())

            return asyncio.run(whole())

        try:
            return isolated(body)
        finally:
            remove(cgroup / "probe")

    return run
