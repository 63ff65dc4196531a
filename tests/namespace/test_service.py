"""Services as real processes: a whole PID 1's worth of supervision as process 1 of a pid namespace."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from initd import cgroups, files, native
from initd.supervise.states import State
from tests.namespace.supervision import PYTHON, TELL, replaced
from tests.unit.api_support import until
from tests.unit.core_support import states

if TYPE_CHECKING:
    from initd.supervise.service import Service
    from tests.namespace.supervision import Init, Scene


def is_stopped(service: Service) -> bool:
    assert service.process is not None
    with open(f"/proc/{service.process.pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(") ")[2].startswith("T")


def test_ready_from_the_main_process_only(scene: Scene) -> None:
    script = TELL + (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    tell('READY=1\\nSTATUS=from a stranger')\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "tell('STATUS=warming up')\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "tell('READY=1')\n"
        "signal.pause()\n"
    )

    async def act(node: Init) -> tuple[State, int, list[str]]:
        service = node.service((*PYTHON, script), notify=True)
        service.start()
        await until(lambda: service.status_text == "warming up")
        await until(lambda: is_stopped(service))
        assert service.process is not None
        assert service.notify is not None
        before = (service.state, service.notify.refused)
        native.pidfd_send_signal(service.process.pidfd, signal.SIGCONT)
        await until(lambda: service.state is State.RUNNING)
        return *before, states(service)

    assert scene(act) == (State.STARTING, 1, ["starting", "running"])


def test_a_crash_tells_its_exit_and_last_lines_and_is_answered_by_a_start(scene: Scene) -> None:
    async def act(node: Init) -> Any:
        service = node.service(("/bin/sh", "-c", "echo to stdout; echo panic: no disk >&2; exit 7"))
        service.start()
        await until(lambda: service.last_exit is not None and service.restarts == 3)
        await until(lambda: service.state is State.CRASH_LOOP)
        service.stop()
        await until(lambda: len(service.status()["last_lines"]) >= 6)
        return service.status()

    status = scene(act)
    assert status["last_exit"] == "exited with code 7"
    assert status["last_lines"][:2] == ["to stdout", "panic: no disk"]
    assert states(status) == [
        "starting", "backoff", "starting", "backoff", "starting", "crash-loop", "starting", "crash-loop", "down",
    ]  # fmt: skip
    assert len({entry["pid"] for entry in status["history"] if entry["pid"]}) == 4


def test_a_program_that_is_missing_is_named(scene: Scene) -> None:
    async def act(node: Init) -> str:
        service = node.service(("/usr/bin/no-such-program",))
        service.start()
        return service.history[-1]["reason"]

    assert scene(act) == "/usr/bin/no-such-program: exec: No such file or directory"


def test_a_start_that_hangs_is_seen_to_later(scene: Scene) -> None:
    """The cgroup above is frozen, which holds a child up before its exec as a disk that hangs would."""

    async def act(node: Init) -> tuple[float, list[str]]:
        service = node.service(("/usr/bin/no-such-program",), start_seconds=0.5)
        freeze = f"{cgroups.ROOT}/cgroup.freeze"
        cgroups._write(freeze, "1")
        descriptors = len(os.listdir("/proc/self/fd"))
        begun = time.monotonic()
        service.start()
        blocked = time.monotonic() - begun
        await until(lambda: service.last_exit is not None)
        first = service.last_exit
        await until(lambda: service.state is State.STARTING)
        cgroups._write(freeze, "0")
        await until(lambda: service.last_exit != first)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        return blocked, [str(entry["reason"]) for entry in service.history]

    blocked, reasons = scene(act)
    assert blocked < 1.0
    assert reasons[1:3] == ["not ready 0.5 s after its start", "killed by SIGKILL"]
    assert reasons[4] == "/usr/bin/no-such-program: exec: No such file or directory"


def test_a_double_fork_that_ignores_sigterm_does_not_escape_a_stop(scene: Scene) -> None:
    script = "trap '' TERM; (setsid sh -c 'while :; do sleep 1000; done' &) ; echo ready; while :; do sleep 1000; done"

    async def act(node: Init) -> Any:
        service = node.service(("/bin/sh", "-c", script))
        service.start()
        await until(lambda: "ready" in service.status()["last_lines"])
        await until(lambda: len(cgroups.processes("probe")) >= 3)
        service.stop()
        await until(lambda: service.state is State.DOWN)
        await until(lambda: not cgroups.populated("probe"))
        return service.last_exit

    assert scene(act) == "killed by SIGKILL"


def test_a_stopped_process_ends_too(scene: Scene) -> None:
    async def act(node: Init) -> str | None:
        service = node.service(("/bin/sh", "-c", "trap 'exit 3' TERM; echo ready; kill -STOP $$; :"), stop_seconds=20)
        service.start()
        await until(lambda: is_stopped(service))
        service.stop()
        await until(lambda: service.state is State.DOWN)
        return service.last_exit

    assert scene(act) == "exited with code 3"


def test_what_a_main_only_service_started_survives_its_restart(scene: Scene) -> None:
    async def act(node: Init) -> tuple[set[int], list[str]]:
        script = "(setsid sleep 1000 &); sleep 0; echo ready; exec sleep 1000"
        service = node.service(("/bin/sh", "-c", script), main_only=True)
        service.start()
        await until(lambda: "ready" in service.status()["last_lines"])
        assert service.process is not None
        first = service.process.pid
        shims = set(cgroups.processes("probe")) - {first}
        service.restart()
        await until(lambda: replaced(service, first))
        return shims & set(cgroups.processes("probe")), states(service)

    survivors, history = scene(act)
    assert survivors
    assert history == ["starting", "restarting", "starting"]


def test_a_frozen_cgroup_does_not_hold_up_a_start(scene: Scene) -> None:
    """What a main-only service left behind keeps its cgroup in use, so that the next start finds it as it is."""

    async def act(node: Init) -> tuple[str, list[str]]:
        script = "(setsid sleep 1000 &); echo ready; exec sleep 1000"
        service = node.service(("/bin/sh", "-c", script), main_only=True)
        service.start()
        await until(lambda: "ready" in service.status()["last_lines"])
        assert service.process is not None
        first = service.process.pid
        freeze = f"{cgroups.ROOT}/probe/cgroup.freeze"
        cgroups._write(freeze, "1")
        service.restart()
        await until(lambda: service.process is None or replaced(service, first))
        return files.read(freeze), states(service)

    assert scene(act) == ("0", ["starting", "restarting", "starting"])


def hold(pid: int) -> native.Child:
    """Keep a process from ending when it is killed, as a system call that never returns would: see ptrace(2)."""
    source, sink = os.pipe()
    child = native.spawn(native.Spawn((), {}, fds={3: sink}))
    if child.pid == 0:
        ctypes.CDLL(None).ptrace(0x4206, pid, None, ctypes.c_void_p(0x40))  # PTRACE_SEIZE, PTRACE_O_TRACEEXIT
        os.write(3, b"!")
        signal.pause()
    os.read(source, 1)
    return child


def test_what_cannot_be_ended_does_not_keep_a_service_down(scene: Scene) -> None:
    """It stays in its cgroup; once it has ended, the next start removes what was made meanwhile, and by others."""

    async def act(node: Init) -> Any:
        service = node.service(("/bin/sh", "-c", "sleep 1000 & echo ready; exec sleep 1000"))
        service.start()
        await until(lambda: "ready" in service.status()["last_lines"])
        assert service.process is not None
        first = service.process.pid
        (stuck,) = set(cgroups.processes("probe")) - {first}
        holder = hold(stuck)
        service.restart()
        await until(lambda: replaced(service, first))
        left = {stuck} & set(cgroups.processes("probe"))
        below = sorted(name for name in os.listdir(f"{cgroups.ROOT}/probe") if "." not in name)
        native.pidfd_send_signal(holder.pidfd, signal.SIGKILL)
        os.makedirs(f"{cgroups.ROOT}/probe/others/deep")
        service.stop()
        await until(lambda: not cgroups.populated("probe"))
        service.start()
        return bool(left), below, next(os.walk(f"{cgroups.ROOT}/probe"))[1], states(service)

    left, below, afterwards, history = scene(act)
    assert left
    assert len(below) == 1
    assert afterwards == []
    tries = ["starting", "backoff", "starting", "backoff", "starting", "crash-loop", "starting"]
    assert history == ["starting", "restarting", *tries, "stopping", "down", "starting"]


def test_a_restart_leaks_no_descriptor(scene: Scene) -> None:
    async def act(node: Init) -> tuple[int, int]:
        service = node.service(("/bin/sleep", "1000"))
        service.start()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert service.process is not None
            first = service.process.pid
            service.restart()
            await until(functools.partial(replaced, service, first))
        return before, len(os.listdir("/proc/self/fd"))

    before, after = scene(act)
    assert after == before


def test_what_a_process_gets(scene: Scene) -> None:
    async def act(node: Init) -> list[str]:
        service = node.service(
            ("/bin/sh", "-c", "cat /proc/self/cgroup | tail -n 1; cat /proc/self/oom_score_adj; ls /proc/self/fd; env"),
            oom_score_adj=900,  # to lower it takes CAP_SYS_RESOURCE, which not every host gives
            notify=True,
            watchdog_seconds=60.0,
        )
        service.start()
        await until(lambda: service.last_exit is not None)
        await until(lambda: any("WATCHDOG" in line for line in service.status()["last_lines"]))
        return service.status()["last_lines"]

    lines = scene(act)
    assert lines[0].endswith("/probe")
    assert lines[1] == "900"
    assert lines[2:6] == ["0", "1", "2", "3"]  # ls opens the fourth itself
    assert {"NOTIFY_SOCKET=/run/initd/notify/probe.sock", "WATCHDOG_USEC=60000000", "PATH=/usr/bin:/bin"} <= set(lines)
