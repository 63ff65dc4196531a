"""Reaping as process 1 of a pid namespace: own children and the orphans that the kernel hands over."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING

from initd import native
from initd.native import Spawn
from initd.supervise.reap import Reaper, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from initd.native import Exit
    from tests.namespace.conftest import Isolated

DEADLINE = 20.0
ORPHANS = 600  # more than two batches


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
