"""A root that comes with the initramfs, for machines that have no disk."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from qemu.image import Files
from rootfs.image import MEBIBYTE
from rootfs.initramfs import cpio

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.image import Bootable
    from qemu.plugin import MachineFactory


def test_a_root_in_the_initramfs(machine_factory: MachineFactory, image: Bootable, tmp_path: Path) -> None:
    assert image.initramfs
    assert image.disk
    root = image.disk.read_bytes()[MEBIBYTE:-MEBIBYTE]  # the partition, without the tables before and after it
    both = tmp_path / "initramfs.img"
    shipped = image.initramfs.read_bytes()
    both.write_bytes(shipped + bytes(-len(shipped) % 4) + cpio([("root.erofs", stat.S_IFREG | 0o444, root)]))
    machine = machine_factory(image=Files(image.kernel, both))
    machine.start()
    machine.wait_for("ready", 180.0)
    assert machine.verify()["image"]
    with machine.client() as client:
        mounts = {mount["target"]: mount for mount in client.stream("mounts")}
        assert {disk["name"] for disk in client.call("disks")} == {"loop0"}
    assert (mounts["/"]["source"], mounts["/"]["type"]) == ("/dev/loop0", "erofs")
    assert "ro" in mounts["/"]["flags"]
    assert machine.boots == 1
