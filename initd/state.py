"""The partition that keeps who the node is: the kubelet's keys and certificates, without which it could not come back
once the token that it joined with is used up.
"""

import os
import select

from initd import mounts
from initd.events import boottime
from initd.files import read

PARTITION = "INITD-STATE"
DONE = b"done"


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


def mount(device: str, seconds: float) -> None:
    """Mount what is on it. Raises OSError, TimeoutError among them.

    In a child, for at most so many seconds: a disk that does not answer must not block PID 1. A child that is late
    leaves the kubelet's folder alone, which is in use by then.
    """
    end = boottime() + seconds
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            disk, keys = mounts.on_state(device)
            mounts.mount_all((disk,))
            mounts.make_directories(((keys.source, 0o700),))
            if boottime() < end:
                mounts.mount_all((keys,))
                os.write(writer, DONE)
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)  # whatever happened: there is one PID 1
    os.close(writer)
    try:
        poll = select.poll()
        poll.register(reader)
        if not poll.poll(seconds * 1000):
            raise TimeoutError(f"{device} does not answer")
        said = os.read(reader, 1000)
    finally:
        os.close(reader)
    os.waitpid(child, 0)
    if said != DONE:
        raise OSError(said.decode() or f"{device}: not mounted, and nobody knows why")
