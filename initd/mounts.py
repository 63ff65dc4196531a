"""The mount table of the node, and the few lines that walk it.

Every file system that initd mounts is one row of `TABLE` (or of `after_var`, what needs /var); a test compares both
with /proc/self/mountinfo in a running node. Sources: mount(2), proc_pid_mountinfo(5), the kernel's
Documentation/filesystems.
"""

import errno
import os
import stat
from typing import NamedTuple

from initd import native
from initd.native import MountFlag
from initd.services import KUBELET_PKI

SAFE = MountFlag.NOSUID | MountFlag.NODEV
SEALED = SAFE | MountFlag.NOEXEC
DEVICES = MountFlag.NOSUID | MountFlag.NOEXEC
FACTORY = "/usr/share/initd/factory"
ETC = "/run/initd/etc"
OPT_LAYERS = "/var/lib/initd/opt"
LOGS = "/run/initd/log"
STATE = "/run/initd/state"


class Mount(NamedTuple):
    """One mount. `needed`: the node cannot go on without it; `make`: the mount point is to be made first."""

    target: str
    source: str
    type: str
    flags: MountFlag
    data: str = ""
    needed: bool = True
    make: bool = False


TABLE = (
    Mount("/proc", "proc", "proc", SEALED),
    Mount("/sys", "sysfs", "sysfs", SEALED),
    Mount("/dev", "devtmpfs", "devtmpfs", DEVICES, "mode=0755"),
    Mount("/run", "tmpfs", "tmpfs", SAFE, "mode=0755,size=10%,nr_inodes=200k"),
    Mount("/sys/fs/cgroup", "cgroup2", "cgroup2", SEALED, "nsdelegate,memory_recursiveprot"),
    Mount("/tmp", "tmpfs", "tmpfs", SEALED, "mode=1777,size=10%,nr_inodes=100k"),
    Mount("/dev/pts", "devpts", "devpts", DEVICES, "mode=0620,gid=5,ptmxmode=0666", make=True),
    Mount("/dev/shm", "tmpfs", "tmpfs", SEALED, "mode=1777,size=10%", make=True),
    Mount("/dev/mqueue", "mqueue", "mqueue", SEALED, needed=False, make=True),
    Mount("/dev/hugepages", "hugetlbfs", "hugetlbfs", SEALED, needed=False, make=True),
    Mount("/sys/fs/bpf", "bpf", "bpf", SEALED, "mode=0700", needed=False),
    Mount("/sys/fs/pstore", "pstore", "pstore", SEALED, needed=False),
    Mount("/sys/kernel/security", "securityfs", "securityfs", SEALED, needed=False),
    Mount("/sys/kernel/debug", "debugfs", "debugfs", SEALED, needed=False),
    Mount("/sys/kernel/tracing", "tracefs", "tracefs", SEALED, needed=False),
    Mount("/sys/kernel/config", "configfs", "configfs", SEALED, needed=False),
    Mount("/sys/fs/fuse/connections", "fusectl", "fusectl", SEALED, needed=False),
    Mount("/sys/firmware/efi/efivars", "efivarfs", "efivarfs", SEALED | MountFlag.RDONLY, needed=False),
    Mount("/etc/kubernetes", "tmpfs", "tmpfs", SEALED, "mode=0755,size=64m"),
    Mount("/etc/cni", "tmpfs", "tmpfs", SEALED, "mode=0755,size=16m"),
)

VAR_OPTIONS = "mode=0755,size=50%,nr_inodes=1m"


def after_var(options: str = VAR_OPTIONS) -> tuple[Mount, ...]:
    """/var itself, with tmpfs(5) `options`, what has its upper layer there, and the services' logs for pods to ship."""
    layers = f"lowerdir=/opt,upperdir={OPT_LAYERS}/upper,workdir={OPT_LAYERS}/work"
    logs = Mount("/var/log/initd", LOGS, "tmpfs", SEALED | MountFlag.BIND | MountFlag.RDONLY)
    return Mount("/var", "tmpfs", "tmpfs", SAFE, options), Mount("/opt", "opt", "overlay", SAFE, layers), logs


def on_state(device: str, owner: str) -> tuple[Mount, ...]:
    """The partition that outlives the root and /var, each write to it at once, and what of it is one node's kubelet."""
    keys = Mount(KUBELET_PKI, f"{STATE}/kubelet-pki/{owner}", "ext4", SEALED | MountFlag.BIND, make=True)
    return Mount(STATE, device, "ext4", SEALED | MountFlag.SYNCHRONOUS | MountFlag.DIRSYNC, make=True), keys


VAR_DIRECTORIES = (
    ("/var/tmp", 0o1777),
    ("/var/log", 0o755),
    ("/var/log/pods", 0o755),
    ("/var/log/containers", 0o755),
    ("/var/log/initd", 0o755),
    ("/var/lib", 0o755),
    ("/var/lib/kubelet", 0o750),
    ("/var/lib/kubelet/volumeplugins", 0o755),
    ("/var/lib/containerd", 0o711),
    ("/var/lib/initd", 0o755),
    (OPT_LAYERS, 0o755),
    (f"{OPT_LAYERS}/upper", 0o755),
    (f"{OPT_LAYERS}/work", 0o755),
)
LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)
VAR_LINKS = (("/run", "/var/run"), ("/run/lock", "/var/lock"))
RUN_DIRECTORIES = (
    ("/run/lock", 0o755),
    ("/run/initd", 0o755),
    (ETC, 0o755),
    (LOGS, 0o755),
    ("/run/initd/notify", 0o700),
    ("/run/initd/kubelet", 0o700),
    ("/run/initd/containerd", 0o700),
    ("/run/containerd", 0o711),
)


def mount_all(rows: tuple[Mount, ...] = TABLE) -> list[str]:
    """Mount `rows` in order; what an earlier stage mounted already is only given its flags.

    Returns one line for each mount that is not `needed` and failed. Raises OSError for one that is.
    """
    failures = []
    for row in rows:
        try:
            _mount(row)
        except OSError as error:
            if row.needed:
                raise
            # ENODEV, ENOENT: this kernel or machine does not have it, which is no failure (no EFI, no hugetlb).
            if error.errno not in {errno.ENODEV, errno.ENOENT}:
                failures.append(f"{row.target}: {error.strerror}")
    return failures


def _mount(row: Mount) -> None:
    if row.make:
        os.makedirs(row.target, exist_ok=True)
    # Mounted already is what is on another device than its parent; a bind mount of the same device is not seen.
    there = os.lstat(row.target).st_dev != os.lstat(os.path.dirname(row.target) or "/").st_dev
    if not there:
        native.mount(row.source, row.target, row.type, row.flags, row.data)
    if there or MountFlag.BIND in row.flags:  # a new bind mount has not taken its other flags
        native.mount("", row.target, "", row.flags | MountFlag.REMOUNT | MountFlag.BIND)


def unescape(text: str) -> str:
    """A path of mountinfo as it is: space, tab, newline, hash and backslash stand there as octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def share_root() -> None:
    """Make / recursively shared, so that a Bidirectional mount of one pod is seen by the node and by other pods."""
    native.mount("", "/", "", MountFlag.SHARED | MountFlag.REC)


def make_directories(rows: tuple[tuple[str, int], ...]) -> None:
    """Make each (path, mode) whose parent exists; the mode is set whatever the umask says."""
    for path, mode in rows:
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            pass  # made by an earlier stage: only its mode is set
        os.chmod(path, mode)


def make_links(rows: tuple[tuple[str, str], ...]) -> None:
    """Make each (target, link) that is not there yet."""
    for target, link in rows:
        if not os.path.lexists(link):
            os.symlink(target, link)


def seed(source: str, target: str) -> None:
    """Copy the regular files and directories below `source` into `target`; nothing if there is no `source`."""
    if not os.path.isdir(source):
        return
    for entry in os.scandir(source):
        destination = os.path.join(target, entry.name)
        if entry.is_dir(follow_symlinks=False):
            os.makedirs(destination, exist_ok=True)
            seed(entry.path, destination)
        elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            with open(entry.path, "rb") as reader, open(destination, "wb") as writer:
                writer.write(reader.read())
