"""The partition that keeps who the node is: the kubelet's keys and certificates, without which it could not come back
once the token that it joined with is used up.

There is a folder for each node name in each cluster, since a cluster refuses another one's certificates for ever. What
becomes again the node that it was, has its keys again.
"""

import binascii
import gc
import os
from contextlib import suppress

from initd import mounts, native
from initd.config import kubeconfig
from initd.config.schema import Config
from initd.events import boottime
from initd.files import read

PARTITION = "INITD-STATE"
PERSISTENT = "persistent"
REPORT_FD = 3
PAIRS = ("kubelet-client-current.pem", "kubelet-server-current.pem")  # each a certificate and its key, or a link to it
SELF_SIGNED = ("kubelet.crt", "kubelet.key")  # of a kubelet that nobody gives a certificate, which never renews them


def find(root: str = "/sys/class/block") -> str | None:
    """The device of the partition, by its name in the GPT.

    Raises OSError, for several too: to take either would make the node depend on the order of devices, and a volume of
    a pod's may have one.
    """
    wanted, names = f"PARTNAME={PARTITION}", sorted(os.listdir(root))
    found = [name for name in names if wanted in read(f"{root}/{name}/uevent").splitlines()]
    if len(found) > 1:
        raise OSError(f"{len(found)} partitions {PARTITION}: {', '.join(found)}")
    return f"/dev/{found[0]}" if found else None


def owner(name: str, config: Config) -> str:
    """What the folder of this node in this cluster is called."""
    cluster = config.cluster
    authority = kubeconfig.parse(cluster.bootstrap_kubeconfig).authority if cluster is not None else b""
    return f"{binascii.crc32(b' '.join([name.encode(), *authority.split()])):08x}"


def begin(device: str, whose: str, seconds: float) -> int:
    """Mount what is on the partition, and that folder of it where the kubelet looks. Raises OSError.

    In a child, since a disk that does not answer must not block PID 1; the descriptor is for `outcome`, once it is
    readable. A child that takes longer leaves the kubelet's folder alone, which is in use by then.
    """
    end = boottime() + seconds
    report, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    child = native.spawn(native.Spawn((), {}, fds={REPORT_FD: writer}))
    if child.pid == 0:
        try:
            gc.freeze()  # see worker.run_forked
            try:
                said = _mount(device, whose, end)
            except OSError as error:
                said = str(error)
            os.write(REPORT_FD, os.fsencode(said))
        finally:
            os._exit(0)  # whatever happened: there is one PID 1
    for fd in (writer, child.pidfd, child.report):  # it is reaped like any other
        if fd >= 0:
            os.close(fd)
    return report


def outcome(device: str, report: int) -> str:
    """What came of it: PERSISTENT, and why it is a new identity if there was another. Raises OSError."""
    try:
        said = os.read(report, 4096).decode(errors="replace")
    except BlockingIOError:
        raise TimeoutError(f"{device} does not answer") from None
    if not said.startswith(PERSISTENT):
        raise OSError(said or f"{device}: not mounted, and nobody knows why")
    return said


def _mount(device: str, whose: str, end: float) -> str:
    disk, keys = mounts.on_state(device, whose)
    mounts.mount_all((disk,))
    if os.path.ismount(keys.target):
        return PERSISTENT  # by a life of PID 1 that failed just then
    mounts.make_directories(((os.path.dirname(keys.source), 0o700),))
    new = _make_room(keys.source)
    mounts.make_directories(((keys.source, 0o700),))
    for name in SELF_SIGNED:
        with suppress(FileNotFoundError):
            os.unlink(f"{keys.source}/{name}")
    if boottime() > end:
        raise TimeoutError(f"{device} did not answer in time")
    mounts.mount_all((keys,))
    return f"{PERSISTENT}: {new}" if new else PERSISTENT


def _make_room(folder: str) -> str:
    """Put aside what would make the kubelet end over and over; why that is, or why there is nothing yet, or ""."""
    if not os.path.lexists(folder):
        return f"new, since {PARTITION} is of another node or cluster" if os.listdir(os.path.dirname(folder)) else ""
    broken = [name for name in PAIRS if not _is_whole(folder, name)]
    for name in broken:
        os.replace(f"{folder}/{name}", f"{folder}/{name}.old")  # a link most often; the kubelet asks for another one
    return f"put aside {', '.join(broken)}, no certificate and key" if broken else ""


def _is_whole(folder: str, name: str) -> bool:
    """Whether it has what it should, or is not there: then the kubelet asks for it."""
    with suppress(OSError):
        name = os.path.basename(os.readlink(f"{folder}/{name}"))  # where it leads to, the folder is not yet
    try:
        with open(f"{folder}/{name}", "rb") as file:
            data = file.read(1 << 20)
    except FileNotFoundError:
        return True
    return all(kubeconfig.has_pem(data, label) for label in ("CERTIFICATE", "PRIVATE KEY"))
