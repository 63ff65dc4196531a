"""System calls, most of which Python's standard library lacks, typed: the only importer of `initd._native`.

Each function raises OSError whose text names the call and whose filename is the path, or ValueError for text with a NUL
byte, which C would cut short. PID 1 imports this before it has started anything, so it imports nothing slow itself.
Behaviour is that of the man page of the same name.
"""

import _signal  # type: ignore[import-not-found]  # typeshed describes `signal` only
import _socket
import faulthandler
import os
from collections.abc import Collection, Mapping
from enum import Enum, IntEnum, IntFlag
from typing import NamedTuple

from initd._native import ffi, lib

EXEC_TIMEOUT = 100  # milliseconds that PID 1 waits for the exec of a child; one that takes longer is seen to later
SIGNALFD_RECORD = 128
MODULE_INIT_COMPRESSED_FILE = 4
NAMES_SIZE = 16_384


class MountFlag(IntFlag):
    """Flags of mount(2)."""

    NONE = 0
    RDONLY = lib.MS_RDONLY
    NOSUID = lib.MS_NOSUID
    NODEV = lib.MS_NODEV
    NOEXEC = lib.MS_NOEXEC
    SYNCHRONOUS = lib.MS_SYNCHRONOUS
    REMOUNT = lib.MS_REMOUNT
    DIRSYNC = lib.MS_DIRSYNC
    BIND = lib.MS_BIND
    MOVE = lib.MS_MOVE
    REC = lib.MS_REC
    PRIVATE = lib.MS_PRIVATE
    SHARED = lib.MS_SHARED


class UmountFlag(IntFlag):
    """Flags of umount2(2)."""

    NONE = 0
    DETACH = lib.MNT_DETACH
    NOFOLLOW = lib.UMOUNT_NOFOLLOW


class Resolve(IntFlag):
    """How openat2(2) may walk a path."""

    NO_XDEV = lib.RESOLVE_NO_XDEV
    NO_MAGICLINKS = lib.RESOLVE_NO_MAGICLINKS
    NO_SYMLINKS = lib.RESOLVE_NO_SYMLINKS
    BENEATH = lib.RESOLVE_BENEATH


class RebootCommand(IntEnum):
    """Commands of reboot(2); CAD is what Ctrl-Alt-Del does: off means a signal to PID 1 instead of an instant reset."""

    RESTART = lib.RB_AUTOBOOT
    POWER_OFF = lib.RB_POWER_OFF
    CAD_OFF = lib.RB_DISABLE_CAD


class Stage(Enum):
    """The step at which starting a child failed: the C code's number, and words for an error message."""

    CLONE = lib.INITD_CLONE, "clone"
    CGROUP = lib.INITD_CGROUP, "entering cgroup"
    SESSION = lib.INITD_SESSION, "new session"
    SIGNALS = lib.INITD_SIGNALS, "resetting signals"
    OOM_SCORE = lib.INITD_OOM_SCORE, "setting oom_score_adj"
    LIMITS = lib.INITD_LIMITS, "setting resource limits"
    DESCRIPTORS = lib.INITD_DESCRIPTORS, "arranging descriptors"
    WORKING_DIRECTORY = lib.INITD_WORKING_DIRECTORY, "changing directory"
    CAPABILITIES = lib.INITD_CAPABILITIES, "dropping capabilities"
    SEAL = lib.INITD_SEAL, "setting no_new_privs and the filter of system calls"
    EXEC = lib.INITD_EXEC, "exec"


class SpawnError(OSError):
    """A child that did not start: errno, the program as filename, and the stage that failed."""

    def __init__(self, number: int, program: str, stage: Stage) -> None:
        super().__init__(number, f"{stage.value[1]}: {os.strerror(number)}", program)
        self.stage = stage

    def __str__(self) -> str:
        """As in `/usr/bin/kubelet: entering cgroup: No such file or directory`."""
        return f"{self.filename}: {self.strerror}"


class Spawn(NamedTuple):
    """How to start a child.

    argv[0] is the program's path; () forks. `fds` maps the child's numbers to this process's; all others are closed,
    and a standard stream that is not given is /dev/null. `cgroup` is a descriptor of a directory in the v2 tree, or -1
    to stay. `rlimits` maps RLIMIT_* to (soft, hard). `bounding` is the set of capability numbers to keep (None: all).
    `sealed` is no_new_privs and a filter that refuses the system calls of spawn.c's list. `namespaces` holds further
    ones to create.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cgroup: int = -1
    fds: Mapping[int, int] = {}
    rlimits: Mapping[int, tuple[int, int]] = {}
    oom_score_adj: int | None = None
    bounding: frozenset[int] | None = None
    sealed: bool = False
    cwd: str = "/"
    namespaces: int = 0


class Child(NamedTuple):
    """A started process; pidfd and report (-1, or see `late_failure`) are close-on-exec and the caller's to close."""

    pid: int
    pidfd: int
    report: int = -1


class Exit(NamedTuple):
    """How a child ended: code is CLD_EXITED, CLD_KILLED or CLD_DUMPED; status the exit code or the signal."""

    pid: int
    uid: int
    code: int
    status: int


class SignalInfo(NamedTuple):
    """A signal read from a signalfd, and who sent it."""

    signo: int
    pid: int
    uid: int
    code: int


def _text(what: str, value: str) -> bytes:
    data = os.fsencode(value)
    if b"\0" in data:
        raise ValueError(f"{what}: {value!r} holds a NUL byte")
    return data


def _checked(result: int, call: str, path: str | None = None, source: str | None = None) -> int:
    if result < 0:
        number = ffi.errno
        raise OSError(number, f"{call}: {os.strerror(number)}", path, None, source)
    return result


def mount(source: str, target: str, fstype: str, flags: MountFlag = MountFlag.NONE, data: str = "") -> None:
    """Attach a file system, or change or move a mount. The error's filename is the target, its filename2 the source."""
    raw = (_text("source", source), _text("target", target), _text("fstype", fstype), int(flags), _text("data", data))
    _checked(lib.mount(*raw), "mount", target, source)


def umount(target: str, flags: UmountFlag = UmountFlag.NONE) -> None:
    """Detach the mount at `target`: umount2(2)."""
    _checked(lib.umount2(_text("target", target), int(flags)), "umount", target)


def _strings(what: str, values: Collection[str]) -> tuple[object, list[object]]:
    """A NULL-terminated char*[] and what must stay referenced while it is used."""
    kept: list[object] = [ffi.new("char[]", _text(what, value)) for value in values]
    return ffi.new("char *[]", [*kept, ffi.NULL]), kept


def _mask(capabilities: Collection[int]) -> int:
    return sum(1 << capability for capability in frozenset(capabilities))


def spawn(spec: Spawn) -> Child:
    """Start a child in a session of its own, with signals and dispositions reset; return when its program runs, or has
    not begun to after `EXEC_TIMEOUT` milliseconds (a frozen cgroup, a disk that hangs).

    Without argv the child is a copy of this interpreter in which `spawn` returns too, with a pid of 0: see fork(2). It
    holds the descriptors of `spec` only, so whatever object held another must not be touched there.

    Raises SpawnError with the stage that failed.
    """
    argv, _argv = _strings("argv", spec.argv) if spec.argv else (ffi.NULL, [])
    envp, _envp = _strings("env", [f"{name}={value}" for name, value in spec.env.items()])
    cwd = ffi.new("char[]", _text("cwd", spec.cwd))
    descriptors = ffi.new("struct initd_descriptor[]", [(child, parent, -1) for child, parent in spec.fds.items()])
    # RLIM_INFINITY is -1 in Python and the greatest number in C.
    rows = [(kind, *(value & 0xFFFF_FFFF_FFFF_FFFF for value in pair)) for kind, pair in spec.rlimits.items()]
    limits = ffi.new("struct initd_limit[]", rows)
    score = ffi.NULL if spec.oom_score_adj is None else ffi.new("char[]", str(spec.oom_score_adj).encode())
    raw = {
        "argv": argv, "envp": envp, "cwd": cwd, "cgroup": spec.cgroup, "namespaces": int(spec.namespaces),
        "descriptors": descriptors, "descriptor_count": len(spec.fds),
        "limits": limits, "limit_count": len(spec.rlimits), "oom_score": score,
        "bounded": spec.bounding is not None, "keep": _mask(spec.bounding or ()),
        "sealed": spec.sealed, "timeout": EXEC_TIMEOUT,
    }  # fmt: skip
    child = ffi.new("struct initd_child *")
    if lib.initd_spawn(ffi.new("struct initd_spawn *", raw), child) < 0:
        raise _spawn_error(child.stage, child.error, spec.argv)
    return Child(child.pid, child.pidfd, child.report)


def _spawn_error(stage: int, number: int, argv: tuple[str, ...]) -> SpawnError:
    return SpawnError(number, argv[0] if argv else "fork", next(known for known in Stage if known.value[0] == stage))


def late_failure(report: int, argv: tuple[str, ...]) -> SpawnError | None:
    """What kept a child from its program after `spawn` had returned; None if nothing did. Blocks while it is alive."""
    words = memoryview(os.read(report, 8)).cast("i")
    return _spawn_error(words[0], words[1], argv) if words else None


def wait_any() -> int | None:
    """The pid of some child that has ended, without reaping it; None if there is none. waitid(2), WNOWAIT."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def wait_pid(pid: int) -> Exit | None:
    """Reap exactly this child; None if it still runs. Raises ChildProcessError if it is no child of this process."""
    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    return None if end is None else Exit(end.si_pid, end.si_uid, end.si_code, end.si_status)


# The standard library has these, without the modules `signal` and `socket`, which PID 1 does not pay for this early.
pidfd_open = os.pidfd_open
pidfd_send_signal = _signal.pidfd_send_signal
sethostname = _socket.sethostname


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate, close-on-exec, of a descriptor that the process has."""
    return _checked(lib.initd_pidfd_getfd(pidfd, fd), "pidfd_getfd")


def signalfd(signals: Collection[int]) -> int:
    """Block the signals and return a non-blocking descriptor from which `read_signal` gets them."""
    return _checked(lib.initd_signalfd([int(number) for number in signals], len(signals)), "signalfd")


def read_signal(fd: int) -> SignalInfo | None:
    """One signal from a signalfd; None if none is pending."""
    try:
        data = os.read(fd, SIGNALFD_RECORD)
    except BlockingIOError:
        return None
    signo, _, code, pid, uid = memoryview(data).cast("i")[:5]
    return SignalInfo(signo, pid, uid & 0xFFFF_FFFF, code)


def reboot(command: RebootCommand) -> None:
    """End the system: acts at once and does not sync. Only CAD_OFF returns."""
    _checked(lib.reboot(command), "reboot")


def openat2(dirfd: int, path: str, flags: int, resolve: Resolve) -> int:
    """Open a file that is there, bounded by `resolve`. The caller gives O_CLOEXEC itself."""
    return _checked(lib.initd_openat2(dirfd, _text("path", path), flags, 0, int(resolve)), "openat2", path)


def adjtime(seconds: float) -> None:
    """Have the clock gain so many seconds by running a little faster or slower, by 500 in a million.

    The kernel takes it for synchronized from then on, to half a second more than that, for eight hours.
    """
    _checked(lib.initd_adjtime(round(seconds * 1e6)), "adjtimex")


def finit_module(path: str, params: str = "") -> None:
    """Load one module file; the kernel itself unpacks .ko.xz, .ko.zst and .ko.gz if it can.

    Raises FileExistsError if it is loaded already.
    """
    flags = 0 if path.endswith(".ko") else MODULE_INIT_COMPRESSED_FILE
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(lib.initd_finit_module(fd, _text("params", params), flags), "finit_module", path)
    finally:
        os.close(fd)


_PROGRAM: list[object] = []  # the path that C holds a pointer to


def survive(program: str, report: int, *, resuming: bool) -> None:
    """From now on a fault of this process makes it execute `program resume`; what happened goes to the file `report`.

    After three faults in a minute, or one before `resumed` if `resuming`, what `keep` named last is executed instead.
    """
    _PROGRAM[:] = [ffi.new("char[]", _text("program", program))]
    _checked(lib.initd_survive(_PROGRAM[0], report, resuming), "sigaction")
    faulthandler.enable(report, all_threads=False)
    _checked(lib.initd_catch_faults(), "sigaction")


def keep(descriptors: Collection[int], rescue: int) -> None:
    """Have these descriptors survive a fault, and `rescue`, one of a program or -1, run if nothing else helps."""
    _checked(lib.initd_keep([*descriptors], len(descriptors), rescue), "keep")


def resumed() -> None:
    """The life after a fault goes on: it is worth another one."""
    lib.initd_resumed()


def restart(reason: str) -> None:
    """Treat what happened as a fault of this process; returns only if there is nothing to execute."""
    lib.initd_restart(reason.replace("\0", "?").encode(errors="replace"))


_KMOD: list[object] = []  # libkmod's context, made by the first call: it maps the module indexes, which takes a while


def load_module(alias: str) -> list[str]:
    """Load what drives a modalias, or a module by name, with all it depends on; the names of those not there before.

    [] if nothing matches, or all are loaded or denied by modprobe.d. The first call opens libkmod (ELIBACC if it
    cannot). Raises OSError if none of what matches can be loaded.
    """
    if not _KMOD:
        kmod = ffi.new("struct initd_kmod *")
        _checked(lib.initd_kmod_open(kmod), "libkmod.so.2")
        _KMOD.append(kmod)
    names = ffi.new("char[]", NAMES_SIZE)
    length = _checked(lib.initd_kmod_load(_KMOD[0], _text("alias", alias), names, NAMES_SIZE), "load_module", alias)
    return os.fsdecode(ffi.buffer(names, length)[:]).split("\0")[:-1]


def probe_filesystem(path: str) -> dict[str, str]:
    """What libblkid knows of a block device or image: TYPE, LABEL, UUID, PART_ENTRY_NAME, ...; {} if nothing is found.

    The values come from the disk: do not trust them. Raises OSError: ENOTUNIQ if signatures contradict each other,
    ELIBACC if libblkid cannot be opened. May block on the device: not for PID 1.
    """
    values = ffi.new("char[]", NAMES_SIZE)
    length = _checked(lib.initd_blkid_probe(_text("path", path), values, NAMES_SIZE), "probe_filesystem", path)
    pairs = ffi.buffer(values, length)[:].decode(errors="replace").split("\0")[:-1]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
