"""Boots that cannot go as they should: each says why, and ends with a node that runs unless there is no root to run."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from initd.supervise.backoff import FIRST, LOOP
from qemu.image import Files
from qemu.net import Network
from rootfs.image import MEBIBYTE
from tests.vm import manifests
from tests.vm.conftest import service, until

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.image import Bootable
    from qemu.machine import Machine
    from qemu.plugin import MachineFactory

BAD = [
    pytest.param('[node]\nnaem = "x"\n', "naem", id="unknown key"),
    pytest.param("[kubelet\n", "not valid TOML", id="not TOML"),
    pytest.param(b"\xff\xfe\x00garbage", "fw_cfg", id="not text"),
]


@pytest.mark.parametrize(("config", "reason"), BAD)
def test_bad_configuration_is_maintenance(machine_factory: MachineFactory, config: str | bytes, reason: str) -> None:
    machine = machine_factory(config=config)
    machine.start()
    machine.wait_for("node:maintenance", 120.0)
    with machine.client() as client:
        status = client.call("status")
        assert status["phase"] == "maintenance"
        assert any(reason in text for text in status["reasons"]), status
        assert reason in client.call("config")["error"]
        assert "kubelet" not in {entry["name"] for entry in client.call("services")}
    assert reason in machine.console_tail()
    assert machine.boots == 1
    with machine.client() as client:
        client.call("shutdown")
    assert machine.wait_exit(40.0), machine.console_tail()


def test_without_dhcp_the_boot_goes_on_and_the_address_comes_later(machine_factory: MachineFactory) -> None:
    machine = machine_factory(config="[network]\ntimeout = 5\n", networks=(Network(dhcp=False),))
    machine.start()
    machine.wait_for("service:kubelet:running", 180.0)
    reasons = status_reasons(machine)
    assert any("DHCP" in reason for reason in reasons), reasons
    machine.start_dhcp()
    machine.wait_for("ready", 120.0)
    with machine.client() as client:
        assert client.call("status")["address"] == "10.0.2.15"


def status_reasons(machine: Machine) -> list[str]:
    """Return why the node is not ready."""
    with machine.client() as client:
        found: list[str] = client.call("status")["reasons"]
        return found


def test_kubelet_that_cannot_start_backs_off_and_says_why(machine_factory: MachineFactory) -> None:
    # A field of the right name and the wrong type: initd cannot know, the kubelet refuses it.
    machine = machine_factory(config='[kubelet.config]\nmaxPods = "many"\n')
    machine.start()
    machine.wait_for("service:kubelet:crash-loop", 180.0)
    machine.wait_for(lambda event: "kubelet: crash-loop" in event.get("reasons", ()), 30.0, name="the node's reason")
    until("some failures", lambda: len(waits(service(machine, "kubelet"))) > LOOP, 60.0)
    kubelet = service(machine, "kubelet")
    assert kubelet["last_exit"] == "exited with code 1"
    assert any("maxPods" in line for line in kubelet["last_lines"]), kubelet["last_lines"]
    for failures, seconds in enumerate(waits(kubelet)):
        assert seconds >= 0.8 * FIRST * 2**failures, "each wait is twice the one before, less a fifth of jitter"
    assert machine.boots == 1
    assert machine.verify()


def waits(status: dict[str, Any]) -> list[float]:
    """Return the seconds from each end to the start after it."""
    history = status["history"]
    return [
        after["monotonic"] - before["monotonic"]
        for before, after in pairwise(history)
        if before["state"] in {"backoff", "crash-loop"}
    ]


def test_machine_without_disk_says_what_is_missing_and_restarts(
    machine_factory: MachineFactory, image: Bootable
) -> None:
    # The kernel's banner, a notice, is what a console has of each boot.
    machine = machine_factory(image=Files(image.kernel, image.initramfs), kernel_arguments="loglevel=6")
    machine.start()
    until("stage 1 says so", lambda: "initd-root-a" in after(machine, "initd stage 1: "), 60.0)
    until("a restart", lambda: "Linux version" in after(machine, "initd stage 1: reboot in"), 60.0)


def test_root_partition_that_holds_garbage_is_named_and_the_machine_restarts(
    machine_factory: MachineFactory, image: Bootable, tmp_path: Path
) -> None:
    assert image.disk is not None
    disk = tmp_path / "disk.img"
    subprocess.run(["cp", "--reflink=auto", image.disk, disk], check=True)
    with disk.open("r+b") as file:
        file.seek(MEBIBYTE)  # where the partition begins; its name, before that, stays
        file.write(b"\xa5" * MEBIBYTE)
    machine = machine_factory(image=Files(image.kernel, image.initramfs, disk), kernel_arguments="loglevel=6")
    machine.start()
    reason = "mount /dev/vda1 as erofs or squashfs: Invalid argument\n"
    until("stage 1 says so", lambda: after(machine, "\ninitd stage 1: ").startswith(reason), 60.0)
    until("a restart", lambda: "Linux version" in after(machine, "initd stage 1: reboot in"), 60.0)
    assert machine.boots == 0, "nothing answered as PID 1"


def after(machine: Machine, text: str) -> str:
    """Return what the console printed after text, "" while it did not."""
    return machine.console_tail(1 << 20).partition(text)[2]


def test_static_address_without_any_dhcp(machine_factory: MachineFactory) -> None:
    config = manifests.config(
        extra='[node]\nname = "fixed"\n[[network.interfaces]]\nname = "eth0"\n'
        'addresses = ["10.0.2.15/24"]\ngateway = "10.0.2.2"\n'
    )
    machine = machine_factory(config=config, networks=(Network(dhcp=False),))
    machine.start()
    machine.wait_for("ready", 180.0)
    with machine.client() as client:
        status = client.call("status")
        times = client.call("boot.times")
    assert (status["name"], status["address"]) == ("fixed", "10.0.2.15")
    order = [phase["name"] for phase in times["phases"]]
    assert order.index("kubelet") < order.index("log"), "the kubelet waited for the loop, which it does not need"
