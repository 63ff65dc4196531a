"""The cgroup tree (v2 only) as data, and the few lines that make it. Source: the kernel's admin-guide/cgroup-v2."""

import os

from initd.files import read

ROOT = "/sys/fs/cgroup"
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
MIB = 1 << 20

# memory.min protects nothing unless every level above it has one too. PID 1 joins its leaf before it has charged
# anything: charges do not move with a process. A worker's leaf is made at its start; kubepods is the kubelet's own.
TREE: tuple[tuple[str, dict[str, int | str]], ...] = (
    ("initd", {"memory.min": 64 * MIB}),
    # Among initd's own, PID 1 first: a busy worker must not delay a restart, nor the boot.
    ("initd/pid1", {"memory.min": 48 * MIB, "cpu.weight": 1000}),
    ("runtime", {"memory.min": 96 * MIB}),  # containerd
    ("shims", {}),  # containerd's, which outlive it
    ("kubelet", {"memory.low": 128 * MIB}),
)


def make_tree(root: str = ROOT) -> list[str]:
    """Join initd/pid1, enable every controller there is and make the tree below `root`.

    Returns one line for each setting that the kernel refused. Raises OSError if a cgroup cannot be made or joined.
    """
    refused: list[str] = []
    for path, _ in TREE:
        os.makedirs(f"{root}/{path}", exist_ok=True)
    _write(f"{root}/initd/pid1/cgroup.procs", "0")
    available = read(f"{root}/cgroup.controllers").split()
    for name in CONTROLLERS:
        # Each on its own: one write of them all enables none if one is refused.
        if name in available:
            for parent in ("", "initd"):
                refused += configure(parent, {"cgroup.subtree_control": f"+{name}"}, root)
    for path, settings in TREE:
        refused += configure(path, settings, root)
    return refused


def configure(path: str, settings: dict[str, int | str], root: str = ROOT) -> list[str]:
    """Make the cgroup `path` and write its settings; returns a line for each that the kernel refused."""
    refused = []
    os.makedirs(f"{root}/{path}", exist_ok=True)
    for name, value in settings.items():
        try:
            _write(f"{root}/{path}/{name}", str(value))
        except OSError as error:
            refused.append(f"{path}/{name}={value}: {error.strerror}")
    return refused


def renew(path: str, settings: dict[str, int | str], root: str = ROOT) -> list[str]:
    """Make the cgroup `path` anew, with its settings and those it has in `TREE`; returns a line for each refused one.

    A process that is cloned into a cgroup which was ever killed is killed at once: the kernel compares that cgroup's
    count of kills with the count of the parent's own (cgroup_css_set_fork in kernel/cgroup/cgroup.c, 6.12 to 6.18 at
    least). Those that somebody made inside of it go with it. Raises OSError EBUSY while anything lives in it.
    """
    for directory, _, _ in os.walk(f"{root}/{path}", topdown=False):
        os.rmdir(directory)
    return configure(path, dict(TREE).get(path, {}) | settings, root)


def open_directory(path: str, root: str = ROOT) -> int:
    """A directory descriptor of the cgroup, for clone3's CLONE_INTO_CGROUP; the caller closes it. Raises OSError."""
    return os.open(f"{root}/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def kill(path: str, root: str = ROOT) -> None:
    """SIGKILL every process in the cgroup and below; a cgroup that is gone has none. Raises OSError otherwise."""
    try:
        _write(f"{root}/{path}/cgroup.kill", "1")
    except FileNotFoundError:
        pass  # gone, and so are its processes


def processes(path: str, root: str = ROOT) -> list[int]:
    """The pids in the cgroup `path` and below it, in no order; empty if there is no such cgroup."""
    pids: list[int] = []
    for directory, _, _ in os.walk(f"{root}/{path}"):
        pids += map(int, read(f"{directory}/cgroup.procs").split())
    return pids


def populated(path: str, root: str = ROOT) -> bool:
    """Whether any process lives in the cgroup or below it."""
    return "populated 1" in read(f"{root}/{path}/cgroup.events")


def oom_kills(path: str, root: str = ROOT) -> int:
    """How many processes of the cgroup the kernel's OOM killer ended so far."""
    words = read(f"{root}/{path}/memory.events").split()
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
