"""Reaping as process 1 of a pid namespace: own children and the orphans that the kernel hands over."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from initd import native
from initd.native import Spawn
from initd.supervise.reap import Reaper, describe
from initd.supervise.states import State
from tests.bench.programs import compiled
from tests.namespace.supervision import PYTHON, TELL, Init
from tests.unit.api_support import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from initd.native import Exit
    from tests.namespace.conftest import Isolated
    from tests.namespace.supervision import Scene

DEADLINE = 20.0
ORPHANS = 600  # several batches
FLOOD = 5000


def reap_until(reaper: Reaper, signals: int, done: Callable[[], bool]) -> None:
    """Reap as PID 1 does, at each SIGCHLD, until `done`."""
    end = time.monotonic() + DEADLINE
    while True:
        while native.read_signal(signals) is not None:
            pass
        while reaper.reap():
            pass
        if done():
            return
        assert select.select([signals], [], [], end - time.monotonic())[0], "no SIGCHLD came"


def test_orphans_and_children_are_told_apart(isolated: Isolated) -> None:
    def body() -> tuple[str, int, list[str]]:
        assert os.getpid() == 1
        signals = native.signalfd([signal.SIGCHLD])
        reaper, ends = Reaper(), list[str]()
        parent = os.fork()
        if parent == 0:
            for _ in range(ORPHANS):
                if os.fork() == 0:
                    os._exit(0)
            os._exit(0)
        child = native.spawn(Spawn(("/bin/sh", "-c", "kill -SEGV $$"), {}))

        def ended(end: Exit) -> None:
            ends.append(describe(end))

        reaper.watch(child.pid, ended)
        reap_until(reaper, signals, lambda: reaper.orphans == ORPHANS + 1 and bool(ends))
        processes = [name for name in os.listdir("/proc") if name.isdecimal()]
        return ends[0], len(ends), processes

    words, count, processes = isolated(body)
    assert words.startswith("killed by SIGSEGV")
    assert count == 1
    assert processes == ["1"], "no zombie is left"


def test_a_pid_that_is_taken_again_reaches_nobody_who_waited_for_the_old_one(isolated: Isolated) -> None:
    def body() -> tuple[list[int], int]:
        signals = native.signalfd([signal.SIGCHLD])
        reaper, statuses = Reaper(), list[int]()
        first = native.spawn(Spawn(("/bin/sh", "-c", "exit 3"), {}))
        reaper.watch(first.pid, lambda end: statuses.append(end.status))
        reap_until(reaper, signals, lambda: bool(statuses))
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(first.pid - 1))
        second = native.spawn(Spawn(("/bin/sh", "-c", "exit 4"), {}))
        assert second.pid == first.pid
        reap_until(reaper, signals, lambda: reaper.orphans == 1)
        return statuses, reaper.orphans

    assert isolated(body) == ([3], 1)


def test_a_flood_leaves_nothing_behind_and_hides_no_end(scene: Scene, tmp_path: Path) -> None:
    program = str(compiled("orphans", tmp_path))
    source, sink = os.pipe()

    async def act(node: Init) -> tuple[int, list[str], str | None, int, bool]:
        service = node.service((*PYTHON, TELL + "tell('READY=1')\nsignal.pause()\n"), notify=True)
        service.start()
        await until(lambda: service.state is State.RUNNING)
        assert service.process is not None
        reaper, ends = node.node.reaper, list[str]()
        flood = native.spawn(Spawn((program, str(FLOOD), "1000000"), {}, fds={1: sink, 2: 2}))
        reaper.watch(flood.pid, lambda end: ends.append(describe(end)))
        await until(lambda: reaper.orphans > FLOOD // 5)
        assert not ends
        native.pidfd_send_signal(service.process.pidfd, signal.SIGKILL)
        await until(lambda: ends and service.restarts and service.state is State.RUNNING)
        await until(lambda: reaper.orphans >= FLOOD)
        left = Path("/proc/1/task/1/children").read_text()
        return reaper.orphans, ends, service.last_exit, service.restarts, left == f"{service.process.pid} "

    assert scene(act) == (FLOOD, ["exited with code 0"], "killed by SIGKILL", 1, True)
    assert os.read(source, 100).split()[0] == str(FLOOD).encode()
    os.close(source)
    os.close(sink)


def test_a_turn_of_the_loop_reaps_one_batch_however_many_signals_come(isolated: Isolated) -> None:
    async def turns() -> list[int]:
        batches = 0

        def reap(_reaper: Reaper) -> bool:
            nonlocal batches
            batches += 1
            os.kill(1, signal.SIGCHLD)  # another child ends meanwhile
            return True

        with mock.patch.object(Reaper, "reap", reap):
            Init()
            os.kill(1, signal.SIGCHLD)
            done = []
            for _ in range(20):
                await asyncio.sleep(0)
                done.append(batches)
        return [after - before for before, after in itertools.pairwise(done)]

    assert isolated(lambda: asyncio.run(turns())) == [1] * 19
