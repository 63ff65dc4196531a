"""What the kernel knows: its log, mounts, processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from initd.api.registry import Call, Role, method
from initd.api.types import KernelRecord, MountInfo, ProcessInfo
from initd.files import read, readable
from initd.mounts import unescape

RECORD_BYTES = 8192
# PF_KTHREAD (include/linux/sched.h)
KERNEL_THREAD = 0x0020_0000


def parse_record(data: bytes) -> KernelRecord | None:
    """One record of /dev/kmsg; None if it is none. Source: the kernel's Documentation/ABI/testing/dev-kmsg."""
    header, separator, text = data.decode(errors="replace").partition(";")
    fields = header.split(",")
    if not separator or len(fields) < 3 or not all(field.isdecimal() for field in fields[:3]):
        return None
    level, seq, microseconds = map(int, fields[:3])
    return {
        "seq": seq,
        "monotonic": microseconds / 1e6,
        "priority": level & 7,
        "facility": level >> 3,
        "text": text.partition("\n")[0],
    }


@method("kernel.log", Role.READER)
async def kernel_log(_call: Call, follow: bool = False) -> AsyncIterator[KernelRecord]:
    """The kernel's log, oldest record first, initd's own records in it; then, if `follow`, each new one as it comes."""
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = parse_record(os.read(descriptor, RECORD_BYTES))
            except BlockingIOError:
                if not follow:
                    return
                await readable(descriptor)
                continue
            except BrokenPipeError:
                continue  # the ring was overwritten under us; the next read goes on with its oldest record
            if record is not None:
                yield record
    finally:
        os.close(descriptor)


@method("mounts", Role.READER)
async def mounts(_call: Call) -> AsyncIterator[MountInfo]:
    """Every mount that PID 1 sees."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: ASYNC230 procfs
        for line in file:
            yield parse_mount(line)


def parse_mount(line: str) -> MountInfo:
    """One line of mountinfo (proc_pid_mountinfo(5)): six fields, optional ones, a dash, three more."""
    left, _, right = line.rstrip("\n").partition(" - ")
    fields, rest = left.split(" "), right.split(" ")
    return {
        "target": unescape(fields[4]),
        "source": unescape(rest[1]),
        "type": rest[0],
        "flags": fields[5].split(","),
        "options": rest[2].split(","),
        "propagation": fields[6:],
    }


@method("processes", Role.READER)
async def processes(_call: Call) -> AsyncIterator[ProcessInfo]:
    """Every process but the kernel's own threads, with its cgroup, memory and CPU time."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if process := read_process(pid):
            yield process
        else:
            await asyncio.sleep(0)  # there may be thousands of kernel threads: others get their turn


def read_process(pid: int) -> ProcessInfo | None:
    """One process as proc_pid_stat(5) and its neighbours have it; None if it is gone or a kernel thread.

    Neither file takes the process's mmap_lock; its arguments are in its own memory, and to read /proc/PID/cmdline waits
    for whoever holds that lock, in the kernel and for ever if need be.
    """
    name, _, rest = read(f"/proc/{pid}/stat").partition(" (")[2].rpartition(") ")
    fields = rest.split()
    if not fields or int(fields[6]) & KERNEL_THREAD:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "pid": pid,
        "parent": int(fields[1]),
        "name": name,
        "cgroup": read(f"/proc/{pid}/cgroup").partition("0::")[2],
        "state": fields[0],
        "resident_bytes": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / ticks,
    }
