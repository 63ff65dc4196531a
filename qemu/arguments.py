"""QEMU's command line, from what a machine is made of. No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qemu.disks import Disk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from qemu.net import Network, Segment

# What every boot of a node says to the kernel: the console is the first serial port, and whoever holds the other end of
# io.initd.api is the host, so it is given every right.
KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=4 printk.devkmsg=on panic=10 random.trust_cpu=on"
    " initd.root=initd-root-a initd.api.serial=admin"
)

# No device that the guest would look for in vain. The HPET alone costs half a second under emulation.
_BOARD = "q35,usb=off,smbus=off,sata=off,vmport=off,hpet=off"
HOTPLUG_PORTS = 2  # hotplug0, hotplug1: free slots for device_add; q35's root bus itself takes no new devices


@dataclass(frozen=True)
class Hardware:
    """A machine to be: memory in MiB, files as paths, console as a file, api and qmp as descriptors of connected
    sockets.
    """

    name: str
    memory: int
    cpus: int
    accelerator: tuple[str, ...]
    kernel: Path
    initramfs: Path | None
    kernel_arguments: str
    root: Path | None
    disks: Sequence[tuple[Path, Disk]]
    networks: Sequence[Network | Segment]
    config: Path | None
    console: Path
    api: int
    qmp: int
    extra: Sequence[str] = ()


def command(qemu: str, hardware: Hardware) -> list[str]:
    """Return the argument vector that starts hardware."""
    devices = [argument for index, network in enumerate(hardware.networks) for argument in network.arguments(index)]
    return [
        *(qemu, "-name", f"guest={_quoted(hardware.name)}", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-M", _BOARD, *hardware.accelerator, "-smp", str(hardware.cpus), "-m", str(hardware.memory)),
        *("-kernel", str(hardware.kernel), "-append", hardware.kernel_arguments),
        *(("-initrd", str(hardware.initramfs)) if hardware.initramfs else ()),
        *("-chardev", f"file,id=console,path={_quoted(hardware.console)}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={hardware.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=api,fd={hardware.api}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,id=api,chardev=api,name=io.initd.api", "-device", "virtio-rng-pci"),
        *_disk_arguments(hardware),
        *devices,
        *(a for n in range(HOTPLUG_PORTS) for a in ("-device", f"pcie-root-port,id=hotplug{n},chassis={n + 1}")),
        *(("-fw_cfg", f"name=opt/io.initd/config,file={_quoted(hardware.config)}") if hardware.config else ()),
        *hardware.extra,
    ]


def _disk_arguments(hardware: Hardware) -> list[str]:
    disks = list(hardware.disks)
    if hardware.root is not None:
        disks.insert(0, (hardware.root, Disk(path=hardware.root, serial="root", read_only=True)))
    result = []
    for index, (path, disk) in enumerate(disks):
        name = "root" if disk.serial == "root" else f"disk{index}"
        block: Mapping[str, object] = {
            "driver": "raw",
            "node-name": name,
            "read-only": disk.read_only,
            "discard": "unmap",
            "file": {"driver": "file", "filename": str(path)},
        }
        device = {"driver": "virtio-blk-pci", "drive": name, "id": f"{name}-device", "serial": disk.serial or name}
        result += ["-blockdev", json.dumps(block), "-device", json.dumps(device)]
    return result


def _quoted(text: object) -> str:
    """Double the commas, which separate options."""
    return str(text).replace(",", ",,")
