"""Beginnings and ends: what a second boot finds of the first, and what each waits for. More ends: rows.py."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from qemu.net import Network
from qemu.probe import Probe
from tests.vm import manifests
from tests.vm.conftest import FORWARD, wait_for_pods

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.machine import Machine
    from qemu.plugin import MachineFactory

OFF_SECONDS = 40.0


def boot(machine_factory: MachineFactory, **options: Any) -> Machine:
    """Start a machine and wait until its node is ready."""
    machine = machine_factory(**options)
    machine.start()
    machine.wait_for("ready", 180.0)
    return machine


def test_reboot_leaves_nothing_in_var_and_who_asked_in_the_store(
    machine_factory: MachineFactory, tmp_path: Path
) -> None:
    marker = f"{manifests.HOST_SHARED}/marker-of-the-first-boot"
    store = f"memory-backend-file,id=store,size=64K,share=on,mem-path={tmp_path / 'erst'}"
    machine = boot(
        machine_factory,
        config=manifests.config(manifests.probe()),
        networks=(Network(forward=FORWARD),),
        qemu_arguments=("-object", store, "-device", "acpi-erst,memdev=store"),
    )
    wait_for_pods(machine, "probe")
    probe = Probe(machine)
    assert probe("mount", path="/shared/marker-of-the-first-boot") == {"error": None}
    assert "marker" in probe("list", path=marker)["names"]
    with machine.next_boot(), machine.client() as client:
        assert client.call("reboot") > 0
    machine.wait_for("ready", 180.0)
    wait_for_pods(machine, "probe")
    assert probe("list", path=marker) == {"error": "ENOENT"}
    assert machine.boots == 2
    with machine.client() as client:
        last = client.call("boot.last")
        assert last["cause"] == "reboot, asked for by API, serial port"
        assert "containerd: stopping" in last["log"], "of the end, initd's own log is there"
        client.call("shutdown")
    assert machine.wait_exit(OFF_SECONDS), machine.console_tail()


def test_pods_have_their_grace_period_up_to_the_deadline(machine_factory: MachineFactory) -> None:
    """Two pods that no SIGTERM ends: one has 2 s, the other would have ten minutes."""
    deaf = [
        manifests.pod(name, manifests.container(name, "probe", "deaf"), terminationGracePeriodSeconds=grace)
        for name, grace in (("brief", 2), ("long", 600))
    ]
    config = manifests.config(*deaf) + "\n[node]\nshutdown_seconds = 20\n"
    machine = boot(machine_factory, config=config)
    wait_for_pods(machine, "brief", "long")
    with machine.client() as client:
        assert client.call("shutdown") == 20.0
        ending = client.call("status")["shutdown"]
        assert ending["action"] == "shutdown"
        assert 0 < ending["seconds_left"] <= 20.0
    asked = time.monotonic()
    assert machine.wait_exit(OFF_SECONDS), machine.console_tail()
    assert 10.0 < time.monotonic() - asked < 22.0, "the long one was waited for, but not beyond the deadline"


def test_workers_rest_and_what_they_wait_for_starts_them(machine_factory: MachineFactory) -> None:
    machine = boot(machine_factory)
    for name in ("network", "devices", "containers"):
        machine.wait_for(f"service:{name}:down", 120.0)
    with machine.client() as client:
        assert client.call("status")["ready"]

        seen = machine.last_seq
        machine.set_link(False)
        machine.wait_for(lambda event: event.get("reasons") == ["eth0: no carrier"], 30.0, seen, "a lost carrier")
        machine.set_link(True)
        machine.wait_for("ready", 30.0, seen)

        restarts = {entry["name"]: entry["restarts"] for entry in client.call("services")}
        assert restarts == dict.fromkeys(restarts, 0)
    machine.power_button()
    assert machine.wait_for("shutdown", 20.0)["by"] == "power button"
    assert machine.wait_exit(OFF_SECONDS), machine.console_tail()
