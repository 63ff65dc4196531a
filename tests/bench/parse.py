"""What the kernel, a console and a disk say, as numbers. No I/O."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

TICKS = 100  # a second, in /proc: USER_HZ, which no architecture that we build for changes
_SECTOR = 512
_MARK = re.compile(r"^bench: (\w+) (\d+\.\d+)\r?\n", re.MULTILINE)


class Use(NamedTuple):
    """What a process used so far: CPU seconds, how often it went to sleep and woke, how often it was preempted."""

    cpu_seconds: float
    wakeups: int
    preemptions: int

    def since(self, before: Use) -> Use:
        seconds = self.cpu_seconds - before.cpu_seconds
        return Use(seconds, self.wakeups - before.wakeups, self.preemptions - before.preemptions)


def start_time(stat: str) -> float:
    """When a process was made, in seconds since boot, from the text of /proc/PID/stat (proc_pid_stat(5), field 22)."""
    return int(stat.rpartition(")")[2].split()[19]) / TICKS


def memory_total(meminfo: str) -> int:
    """The machine's memory in bytes, from /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if found is None:
        raise ValueError(f"no MemTotal in {meminfo[:80]!r}")
    return int(found[1]) * 1024


def use(status: str, schedstat: str) -> Use:
    """What one thread used, from its status and schedstat (proc_pid_status(5); the kernel's sched-stats)."""
    switches = dict(re.findall(r"^(\w+_ctxt_switches):\s+(\d+)$", status, re.MULTILINE))
    nanoseconds = int(schedstat.split(maxsplit=1)[0])
    voluntary, involuntary = switches["voluntary_ctxt_switches"], switches["nonvoluntary_ctxt_switches"]
    return Use(nanoseconds / 1e9, int(voluntary), int(involuntary))


def console_marks(console: str) -> dict[str, float]:
    """The moments that the C init printed, in seconds since boot; {} until it has printed them."""
    return {name: float(seconds) for name, seconds in _MARK.findall(console)}


def partition_bytes(disk: bytes) -> int:
    """The size of a GPT disk's first partition, from the disk's first sectors (UEFI specification, 5.3)."""
    if disk[_SECTOR : _SECTOR + 8] != b"EFI PART":
        raise ValueError("the disk has no GPT")
    (table,) = struct.unpack_from("<Q", disk, _SECTOR + 72)
    first, last = struct.unpack_from("<QQ", disk, table * _SECTOR + 32)
    return int(last - first + 1) * _SECTOR


def percentile(values: list[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(fraction * 1000) // 1000) - 1)]
