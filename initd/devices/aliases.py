"""Which modules the hardware asks for: the modalias of every device in sysfs, the most urgent first."""

import os
import re

from initd.files import read

# Devices are on buses, except for those of a few classes.
CLASSES = ("class/input", "class/dmi")

# Network first: a lease takes longest. Then disks, buttons, keyboards; what every CPU asks for (crypto, kvm) is last.
# Aliases are those of drivers' device tables (Linux scripts/mod/file2alias.c).
ORDER = tuple(
    re.compile(pattern)
    for pattern in (
        r"virtio:d00000001|pci:.*bc02|usb:.*ic(02|E0)",
        r"virtio:d0000000[28]|pci:.*bc01|scsi:t-0x0[05]|usb:.*ic08|nvme",
        r"acpi:(LNXPWRBN|PNP0C0C)|input:|serio:|usb:.*ic03",
        r"(?!cpu:)",
    )
)


def entries(path: str) -> list[str]:
    """The names in a sysfs folder, sorted; none if it is not there."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def urgency(alias: str) -> int:
    """Where in the order of loading an alias comes: 0 is first."""
    return next((rank for rank, pattern in enumerate(ORDER) if pattern.match(alias)), len(ORDER))


def walk(sysfs: str = "/sys") -> list[str]:
    """The modalias of each device that has one, most urgent first; a modalias appears as often as devices have it.

    Plain reads, since libudev's enumeration reads every device's uevent file and costs four times as much (35 ms to 8
    natively, some twenty times that where the CPU is emulated and containerd is starting).
    """
    places = (*(f"bus/{bus}/devices" for bus in entries(f"{sysfs}/bus")), *CLASSES)
    folders = [f"{sysfs}/{place}" for place in places]
    paths = (f"{folder}/{device}/modalias" for folder in folders for device in entries(folder))
    return sorted(filter(None, map(read, paths)), key=urgency)
