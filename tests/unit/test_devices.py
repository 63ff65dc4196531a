"""The devices worker's parts on a sysfs made of files."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd import native
from initd.devices import aliases, buttons
from initd.devices.disks import disks

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = "virtio:d00000001v00001AF4"
DISK = "virtio:d00000002v00001AF4"
BUTTON = "acpi:LNXPWRBN:"
KEYBOARD = "input:b0011v0001p0001eAB41-e0,1,4,11,14,k71,72,73,74"
CONSOLE = "virtio:d00000003v00001AF4"
CPU = "cpu:type:x86,ven0000fam0006mod0003:feature:,0000,0001"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


# Aliases


def test_the_walk_finds_every_modalias_and_puts_the_network_first(tmp_path: Path) -> None:
    write(tmp_path / "bus/acpi/devices/LNXPWRBN:00/modalias", BUTTON)
    write(tmp_path / "bus/cpu/devices/cpu0/modalias", CPU)
    write(tmp_path / "bus/cpu/devices/cpu1/modalias", CPU)
    write(tmp_path / "bus/virtio/devices/virtio0/modalias", CONSOLE)
    write(tmp_path / "bus/virtio/devices/virtio1/modalias", DISK)
    write(tmp_path / "bus/virtio/devices/virtio2/modalias", NETWORK)
    write(tmp_path / "bus/platform/devices/quiet/modalias", "")
    write(tmp_path / "bus/platform/devices/plain/driver_override", "(null)")
    write(tmp_path / "class/input/input0/modalias", KEYBOARD)
    assert aliases.walk(str(tmp_path)) == [NETWORK, DISK, BUTTON, KEYBOARD, CONSOLE, CPU, CPU]


def test_a_missing_sysfs_asks_for_nothing(tmp_path: Path) -> None:
    assert aliases.walk(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("alias", "rank"),
    [
        ("pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00", 0),
        ("usb:v0B95p1790d0100dc00dsc00dp00icFFiscFFip00in00", 3),
        ("pci:v00008086d00007010sv00001AF4sd00001100bc01sc01i80", 1),
        ("pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", 1),
        ("acpi:PNP0C0C:", 2),
        ("platform:pcspkr", 3),
        (CPU, 4),
    ],
)
def test_the_order_follows_the_class_of_device(alias: str, rank: int) -> None:
    assert aliases.urgency(alias) == rank


@given(st.text())
def test_every_alias_has_a_place_in_the_order(alias: str) -> None:
    assert 0 <= aliases.urgency(alias) <= len(aliases.ORDER)


# Buttons


def bitmap(keys: set[int]) -> str:
    """A capabilities/key attribute as the kernel prints it: words of a long's size, no leading zero words."""
    bits = sum(1 << key for key in keys)
    words = [
        f"{bits >> low & ~(-1 << buttons.LONG_BITS):x}"
        for low in range(0, max(bits.bit_length(), 1), buttons.LONG_BITS)
    ]
    return " ".join(reversed(words))


@given(st.sets(st.integers(0, 0x2FF)))
def test_the_power_key_is_found_in_any_bitmap(keys: set[int]) -> None:
    assert buttons.has_power_key(bitmap(keys)) == (buttons.KEY_POWER in keys)


def test_buttons_are_the_event_devices_with_a_power_key(tmp_path: Path) -> None:
    write(tmp_path / "class/input/event0/device/capabilities/key", bitmap({buttons.KEY_POWER}))
    write(tmp_path / "class/input/event1/device/capabilities/key", bitmap({272, 273}))
    write(tmp_path / "class/input/input0/capabilities/key", bitmap({buttons.KEY_POWER}))
    (tmp_path / "class/input/mouse0").mkdir()
    assert buttons.find(str(tmp_path)) == ["event0"]
    assert buttons.find(str(tmp_path / "none")) == []


def event(kind: int, code: int, value: int) -> bytes:
    return struct.pack("@llHHi", 1, 2, kind, code, value)


def test_presses_are_told_from_all_else_and_the_device_may_go() -> None:
    down, up, report = event(1, 116, 1), event(1, 116, 0), event(0, 0, 0)
    repeat, other = event(1, 116, 2), event(1, 30, 1)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    assert not buttons.was_pressed(reading)
    os.write(writing, report + down + report + other)
    assert buttons.was_pressed(reading)
    os.write(writing, repeat + up + other + report + b"half")
    assert not buttons.was_pressed(reading)
    os.close(writing)
    with pytest.raises(OSError, match="No such device"):
        buttons.was_pressed(reading)
    os.close(reading)


# Disks


@pytest.fixture
def disk_sysfs(tmp_path: Path) -> Path:
    """One disk with two partitions, a CD-ROM, an unused loop device."""
    vda = tmp_path / "devices/virtio0/block/vda"
    write(vda / "size", "2048")
    write(vda / "ro", "0")
    write(vda / "removable", "1")
    write(vda / "uevent", "MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk")
    for number, label in ((1, "initd-root-a"), (2, "initd=var")):
        part = vda / f"vda{number}"
        write(part / "size", "1024")
        write(part / "ro", str(number - 1))
        write(part / "partition", str(number))
        write(part / "uevent", f"DEVNAME=vda{number}\nDEVTYPE=partition\nPARTN={number}\nPARTNAME={label}")
    loop = tmp_path / "devices/virtual/block/loop0"
    write(loop / "size", "0")
    block = tmp_path / "class/block"
    block.mkdir(parents=True)
    for device in (vda, vda / "vda1", vda / "vda2", loop):
        (block / device.name).symlink_to(device)
    return tmp_path


def test_disks_and_partitions_are_listed_with_what_is_on_them(
    disk_sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(path: str) -> dict[str, str]:
        match path:
            case "/dev/vda1":
                return {"TYPE": "erofs", "UUID": "1-2"}
            case "/dev/vda2":
                raise OSError(5, "probe_filesystem: Input/output error", path)
        return {"PTTYPE": "gpt"}

    monkeypatch.setattr(native, "probe_filesystem", probe)
    disk, root, var = disks(str(disk_sysfs))
    assert disk == {
        "name": "vda",
        "device": "/dev/vda",
        "size_bytes": 1 << 20,
        "read_only": False,
        "removable": True,
        "partition_label": None,
        "type": None,
        "label": None,
        "uuid": None,
        "parent": None,
    }
    assert (root["parent"], root["partition_label"], root["type"], root["uuid"]) == (
        "vda",
        "initd-root-a",
        "erofs",
        "1-2",
    )
    assert (root["removable"], root["size_bytes"]) == (True, 1 << 19)
    assert (var["partition_label"], var["read_only"], var["type"]) == ("initd=var", True, None)
