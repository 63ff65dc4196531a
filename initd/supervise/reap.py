"""The one place that reaps: children that PID 1 started, and orphans that the kernel gave it.

`waitid(P_ALL, WNOWAIT)` tells who ended without reaping it, so that a child's end always reaches the one who waits for
it.
"""

import os
from collections.abc import Callable

from initd import log, native
from initd.native import Exit

BATCH = 64  # half a millisecond on a real CPU
UNKNOWN, CLD_EXITED, CLD_KILLED, CLD_DUMPED = 0, 1, 2, 3


def describe(end: Exit) -> str:
    """An end in words: `exited with code 1`, `killed by SIGKILL`, `killed by SIGSEGV (core dumped)`."""
    if end.code == CLD_EXITED:
        return f"exited with code {end.status}"
    if end.code == UNKNOWN:
        return "ended; its parent knows how"
    import signal  # noqa: PLC0415 its enums cost the start of every boot

    try:
        name = signal.Signals(end.status).name
    except ValueError:
        name = f"signal {end.status}"  # a real-time signal has no name
    return f"killed by {name}{' (core dumped)' if end.code == CLD_DUMPED else ''}"


class Reaper:
    """Knows PID 1's own children; reaps them and everyone else's."""

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[[Exit], None]] = {}
        self.orphans = 0

    def watch(self, pid: int, ended: Callable[[Exit], None]) -> None:
        """Call `ended` once, when the child `pid` has been reaped."""
        self._waiting[pid] = ended

    def gone(self, pid: int) -> None:
        """A watched process has ended: if it was another's child, tell its `ended` now, but not how."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._waiting.pop(pid)(Exit(pid, 0, UNKNOWN, 0))

    def reap(self) -> bool:
        """Reap at most `BATCH` children; returns whether there may be more. Never raises, never blocks."""
        for _ in range(BATCH):
            pid = native.wait_any()
            if pid is None:
                return False
            end = native.wait_pid(pid)
            if end is None:
                return False
            ended = self._waiting.pop(pid, None)
            if ended is None:
                self.orphans += 1
                continue
            try:
                ended(end)
            except Exception as failure:  # noqa: BLE001 one service's fault must not stop the reaping of others
                log.exception("handling the end of a child failed", failure, pid=pid)
        return True
