"""QEMU's command line and what leads to it: hardware, disks, networks, and the verdict on KVM."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu import accel, disks
from qemu.arguments import KERNEL_ARGUMENTS, Hardware, command
from qemu.disks import Disk
from qemu.errors import HarnessError
from qemu.net import Network, forwards

if TYPE_CHECKING:
    from collections.abc import Sequence

HARDWARE = Hardware(
    name="a,b",
    memory=2048,
    cpus=2,
    accelerator=("-accel", "tcg"),
    kernel=Path("/k"),
    initramfs=Path("/i"),
    kernel_arguments=KERNEL_ARGUMENTS,
    root=Path("/r,oot"),
    disks=[(Path("/var.raw"), Disk(size=1 << 30, serial="var"))],
    networks=[Network()],
    config=Path("/c,onfig"),
    console=Path("/console"),
    api=7,
    qmp=8,
)


def values(arguments: Sequence[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def test_the_root_comes_first_and_cannot_be_written() -> None:
    arguments = command("qemu", HARDWARE)
    root, var = (json.loads(value) for value in values(arguments, "-blockdev"))
    assert root["read-only"] is True
    assert root["file"]["filename"] == "/r,oot"
    assert var["read-only"] is False
    serials = [json.loads(value)["serial"] for value in values(arguments, "-device") if value.startswith("{")]
    assert serials == ["root", "var"]


def test_names_with_commas_stay_in_one_piece() -> None:
    arguments = command("qemu", HARDWARE)
    assert values(arguments, "-name") == ["guest=a,,b"]
    assert values(arguments, "-fw_cfg") == ["name=opt/io.initd/config,file=/c,,onfig"]


def test_the_api_port_and_the_monitor_are_descriptors() -> None:
    arguments = command("qemu", HARDWARE)
    assert {"socket,id=api,fd=7", "socket,id=qmp,fd=8"} <= set(values(arguments, "-chardev"))
    assert "virtserialport,id=api,chardev=api,name=io.initd.api" in values(arguments, "-device")


def test_what_a_machine_lacks_is_not_asked_for() -> None:
    bare = dataclasses.replace(HARDWARE, initramfs=None, root=None, disks=[], networks=[], config=None)
    arguments = command("qemu", bare)
    assert not {"-initrd", "-blockdev", "-netdev", "-fw_cfg"} & set(arguments)


def test_the_serial_api_is_an_administrators_and_the_console_is_the_serial_port() -> None:
    (append,) = values(command("qemu", HARDWARE), "-append")
    assert {"console=ttyS0", "initd.api.serial=admin", "initd.root=initd-root-a"} <= set(append.split())


def test_a_user_network_forwards_ports_of_its_own_choice() -> None:
    arguments = Network(forward=(80, 443), restrict=True).arguments(1)
    (netdev,) = values(arguments, "-netdev")
    assert netdev == "user,id=net1,restrict=on,hostfwd=tcp:127.0.0.1:0-:80,hostfwd=tcp:127.0.0.1:0-:443"
    assert "netdev=net1" in values(arguments, "-device")[0]


def test_a_silent_wire_is_a_hub_that_a_network_is_plugged_into_later() -> None:
    network = Network(dhcp=False, forward=(80,))
    assert values(network.arguments(2), "-netdev") == ["hubport,id=net2,hubid=2", "hubport,id=sink2,hubid=2"]
    (_, user), (_, port) = network.plug(2)
    assert user["type"] == "user"
    assert user["hostfwd"] == [{"str": "tcp:127.0.0.1:0-:80"}]
    assert port == {"type": "hubport", "id": "plug2", "hubid": 2, "netdev": user["id"]}


def test_forwarded_ports_are_read_from_the_monitor() -> None:
    text = """Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  17       127.0.0.1 39411       10.0.2.15  8080     0     0
  TCP[ESTABLISHED]   18       127.0.0.1 50000       10.0.2.15  8080     0     0
  TCP[HOST_FORWARD]  19       127.0.0.1 33333       10.0.2.15    22     0     0
"""
    assert forwards(text) == {8080: 39411, 22: 33333}


def test_every_card_has_an_address_of_its_own() -> None:
    assert len({Network.mac(index) for index in range(8)}) == 8


def test_a_new_disk_is_sparse_and_of_the_size_asked_for(tmp_path: Path) -> None:
    path = Disk(size=1 << 30).prepare(tmp_path, 0)
    assert path.stat().st_size == 1 << 30
    assert path.stat().st_blocks * 512 < 1 << 20


def test_a_disk_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"missing\.raw"):
        Disk(path=tmp_path / "missing.raw").prepare(tmp_path, 0)


def test_a_disk_is_new_or_old_not_both_or_neither() -> None:
    with pytest.raises(ValueError, match="either size or path"):
        Disk()
    with pytest.raises(ValueError, match="either size or path"):
        Disk(size=1, path=Path("/x"))


def test_a_full_disk_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "_RESERVE", 1 << 60)
    with pytest.raises(HarnessError, match="MiB free") as caught:
        disks.check_space(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="cannot be made") as caught:
        disks.make_folder(tmp_path / "file/vms/x")
    assert f"{tmp_path}/file/vms/x" in caught.value.message
    assert "XDG_CACHE_HOME" in caught.value.hint


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A host with /dev/kvm; the list is what probes will find, and shrinks with each probe."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: True)
    findings = [True]
    monkeypatch.setattr(accel, "_probe", lambda *_: findings.pop())
    return findings


def test_kvm_is_probed_once_a_boot(kvm: list[bool]) -> None:
    assert accel.arguments("qemu", Path("/k"))[:2] == ("-accel", "kvm")
    assert accel.works("qemu", Path("/k"))
    assert kvm == []


@pytest.mark.parametrize("kept", ["", "{}", "[]", '{"boot_id": "another", "works": false}'])
def test_a_verdict_that_is_damaged_or_of_another_boot_is_made_again(kept: str, kvm: list[bool]) -> None:
    verdict = disks.cache() / "kvm.json"
    verdict.parent.mkdir(parents=True)
    verdict.write_text(kept)
    assert accel.works("qemu", Path("/k"))
    assert kvm == []
    assert json.loads(verdict.read_text())["works"] is True


def test_without_kvm_the_guest_is_emulated(kvm: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert accel.arguments("qemu", Path("/k"))[1].startswith("tcg")
    assert kvm == [True]
