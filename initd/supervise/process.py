"""A main process, held by a pidfd: a number alone may be another's by the time it is used."""

import os
from typing import NamedTuple

from initd import cgroups, native
from initd.files import read


class Process(NamedTuple):
    """A process: its pid, a pidfd, when it began (see `start_time`), and -1 or the report of its start (native.Child).

    Whoever holds this closes both descriptors.
    """

    pid: int
    pidfd: int
    started: int
    report: int = -1


def find(pid: int, cgroup: str, started: int | None = None) -> Process:
    """Take a process of a cgroup, which must be the one that began at `started` if that is given (see `start_time`).

    Raises LookupError that says what it is not.
    """
    try:
        pidfd = native.pidfd_open(pid)  # before it is looked at
    except (OSError, OverflowError):
        raise LookupError("is no process") from None
    wrong, begun = None, start_time(pid)
    if pid not in cgroups.processes(cgroup):
        wrong = "is outside of its cgroup"
    elif started not in (None, begun):
        wrong = "is another process by now"
    if wrong is not None:
        os.close(pidfd)
        raise LookupError(wrong)
    return Process(pid, pidfd, begun)


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot (proc_pid_stat(5)); 0 if it is gone."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if fields else 0
