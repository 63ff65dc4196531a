"""Disks and partitions: what sysfs says of each, and what libblkid finds on it."""

import os

from structlog import get_logger

from initd import native
from initd.api.types import DiskInfo
from initd.devices.aliases import entries
from initd.files import read

SECTOR = 512  # the unit of sysfs' size attribute, whatever the disk's own sectors are
log = get_logger()


def disks(sysfs: str = "/sys", dev: str = "/dev") -> list[DiskInfo]:
    """All block devices that have a size, by name. Reads from each, so it may block as long as the slowest."""
    folder = f"{sysfs}/class/block"
    return [_disk(f"{folder}/{name}", name, dev) for name in entries(folder) if _size(f"{folder}/{name}")]


def _size(path: str) -> int:
    text = read(f"{path}/size")
    return int(text) * SECTOR if text.isdecimal() else 0


def _disk(path: str, name: str, dev: str) -> DiskInfo:
    parent = os.path.basename(os.path.dirname(os.path.realpath(path))) if read(f"{path}/partition") else None
    uevent = dict(line.partition("=")[::2] for line in read(f"{path}/uevent").splitlines())
    device = f"{dev}/{uevent.get('DEVNAME', name)}"
    found = _probe(device)
    return {
        "name": name,
        "device": device,
        "size_bytes": _size(path),
        "read_only": read(f"{path}/ro") == "1",
        "removable": read(f"{path}/../removable" if parent else f"{path}/removable") == "1",
        "partition_label": uevent.get("PARTNAME"),
        "type": found.get("TYPE"),
        "label": found.get("LABEL"),
        "uuid": found.get("UUID"),
        "parent": parent,
    }


def _probe(device: str) -> dict[str, str]:
    try:
        return native.probe_filesystem(device)
    except OSError as error:
        # No medium, a broken disk, signatures that contradict each other: the disk is listed all the same.
        log.debug("disk not probed", device=device, error=str(error))
        return {}
