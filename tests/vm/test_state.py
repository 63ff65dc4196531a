"""The partition that keeps who the node is: mounted where the kubelet keeps its keys, and left clean."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from qemu.disks import partitioned

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.machine import Machine
    from qemu.plugin import MachineFactory

SUPERBLOCK = (1 << 20) + 1024


def identity(machine: Machine) -> str:
    with machine.client() as client:
        return str(client.call("status")["identity"])


def names(path: Path, folder: str) -> list[str]:
    """What is in a folder of the file system on a disk."""
    command = ["/usr/sbin/debugfs", "-R", f"ls -p {folder}", f"{path}?offset={1 << 20}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [line.split("/")[5] for line in listed.splitlines() if line.startswith("/")]
    return [name for name in found if name not in {".", ".."}]


def test_it_is_mounted_left_clean_and_missed(machine_factory: MachineFactory, tmp_path: Path) -> None:
    path = tmp_path / "state.img"
    disk = partitioned(path, "INITD-STATE", 32 << 20)
    machine = machine_factory(disks=(disk,))
    machine.start()
    machine.wait_for("ready", 180.0)
    assert identity(machine) == "persistent"
    with machine.client() as client:
        mounts = {mount["target"]: mount for mount in client.stream("mounts")}
    for target in ("/run/initd/state", "/var/lib/kubelet/pki"):
        assert (mounts[target]["source"], mounts[target]["type"]) == ("/dev/vdb1", "ext4")
        assert {"nosuid", "nodev", "noexec"} <= set(mounts[target]["flags"])
    assert machine.stop()
    (folder,) = names(path, "/kubelet-pki")
    assert "kubelet.key" in names(path, f"/kubelet-pki/{folder}")
    shown = subprocess.run(
        ["/usr/sbin/dumpe2fs", "-h", f"{path}?offset={1 << 20}"], capture_output=True, text=True, check=True
    ).stdout
    assert "needs_recovery" not in shown, "it was unmounted"

    with path.open("r+b") as file:
        file.seek(SUPERBLOCK)
        file.write(bytes(1024))
    machine = machine_factory(disks=(disk,))
    machine.start()
    machine.wait_for("phase:kubelet", 180.0)
    assert identity(machine).startswith("ephemeral: ")
    with machine.client() as client:
        assert any(reason.startswith("state: ") for reason in client.call("status")["reasons"])
