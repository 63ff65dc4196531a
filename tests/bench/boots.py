"""Boots of the same kernel, root and pod under a bare C init and under initd, and when what happened in them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from initd.config.kubelet import files
from initd.config.schema import parse
from initd.services import KUBELET_CONFIG
from qemu.errors import HarnessError
from qemu.image import Bootable, Files
from qemu.machine import Machine
from qemu.net import Network
from qemu.probe import http_get
from rootfs.initramfs import cpio
from tests.bench.parse import console_marks, memory_total, start_time
from tests.bench.programs import compiled
from tests.vm import manifests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DEADLINE = 180.0
_POLL = 0.25
_ADDRESS = '[[network.interfaces]]\nname = "eth0"\naddresses = ["10.0.2.15/24"]\ngateway = "10.0.2.2"\n'
_STATIC = f'[node]\nname = "bench"\n[network]\ndns = ["10.0.2.3"]\n{_ADDRESS}'
MARKS = ("containerd", "kubelet", "pod")


@dataclass(frozen=True)
class Boot:
    """Seconds from PID 1's exec to each of MARKS; of initd, its phases too (boot.times)."""

    marks: Mapping[str, float]
    phases: list[dict[str, Any]] = field(default_factory=list)


def web_pod() -> dict[str, Any]:
    """A pod that serves /proc, so that it tells when its first process was made, whichever init runs it."""
    ports = [{"containerPort": manifests.WEB_PORT, "hostPort": manifests.WEB_PORT}]
    return manifests.pod(
        "web", manifests.container("web", "web", "serve", str(manifests.WEB_PORT), "/proc", ports=ports)
    )


CONFIGS = {
    "initd, static": manifests.config(web_pod(), extra=_STATIC),
    "initd, DHCP": manifests.config(web_pod(), extra='[node]\nname = "bench"\n'),
}
C_INITS = {"C, parallel": "parallel", "C, sequential": "sequential"}
CONTENDERS = (*C_INITS, *CONFIGS)


class Bench:
    """Boots contenders by name. The first boot, which is not counted, tells what to render the kubelet's files for."""

    def __init__(self, image: Bootable, folder: Path) -> None:
        self._image = image
        self._folder = folder
        self.accelerator = ""
        # Also brings the image into the host's page cache, so that the first counted boot is like the others.
        with Machine("bench", image, config=CONFIGS["initd, static"], networks=_networks()) as machine:
            memory = memory_total(_wait_for(machine, "meminfo"))
            self.accelerator = machine.accelerator
        made = files(parse(CONFIGS["initd, static"], "bench"), memory)
        self._give("kubelet.json", made.pop(KUBELET_CONFIG))
        self._give("pod.json", *made.values())
        self._initramfs = _with_c_init(image, folder)

    def _give(self, name: str, data: bytes) -> None:
        (self._folder / name).write_bytes(data)

    def boot(self, contender: str) -> Boot:
        """Boot once. Raises HarnessError when the pod does not run in time."""
        return self._boot_c(C_INITS[contender]) if contender in C_INITS else self._boot_initd(CONFIGS[contender])

    def _boot_c(self, mode: str) -> Boot:
        given = [
            ("-fw_cfg", f"name=opt/io.initd/bench/{name},file={self._folder / name}")
            for name in ("kubelet.json", "pod.json")
        ]
        machine = Machine(
            "bench",
            Files(self._image.kernel, self._initramfs, self._image.disk),
            networks=_networks(),
            kernel_arguments=f"rdinit=/bench-init init=/proc/self/fd/100 bench.mode={mode}",
            qemu_arguments=[argument for pair in given for argument in pair],
        )
        with machine:
            started = start_time(_wait_for(machine, "1/stat"))
            marks = {**console_marks(machine.console_tail(1 << 20)), "pod": started}
        try:
            return Boot({name: marks[name] - marks["exec"] for name in MARKS})
        except KeyError as missing:
            raise HarnessError(f"the C init did not print {missing}", detail=machine.console_tail()) from None

    def _boot_initd(self, config: str) -> Boot:
        with Machine("bench", self._image, config=config, networks=_networks()) as machine:
            started = start_time(_wait_for(machine, "1/stat"))
            with machine.client() as client:
                times = client.call("boot.times")
        marks = {name: times["marks"][f"{name} exec"] for name in ("containerd", "kubelet")}
        return Boot({**marks, "pod": started - times["exec"]}, times["phases"])


def _networks() -> tuple[Network, ...]:
    return (Network(forward=(manifests.WEB_PORT,)),)


def _with_c_init(image: Bootable, folder: Path) -> Path:
    """Compile the C init and append it to the image's initramfs; the kernel unpacks archives one after the other."""
    program = compiled("init", folder)
    shipped = image.initramfs.read_bytes() if image.initramfs else b""
    path = folder / "initramfs.img"
    path.write_bytes(shipped + bytes(-len(shipped) % 4) + cpio([("bench-init", 0o100755, program.read_bytes())]))
    return path


def wait(machine: Machine, what: str, ask: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    """Return ask()'s first true answer; a node that does not answer yet is a no. Raises HarnessError in the end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and machine.running:
        try:
            if answer := ask():
                return answer
        except (OSError, ValueError):
            pass  # nobody listens there yet
        time.sleep(_POLL)
    raise HarnessError(f"{what}: not within {seconds:g} s", detail=machine.console_tail())


def _wait_for(machine: Machine, name: str) -> str:
    """Return a file of /proc as soon as the web pod gives it."""

    def ask() -> str:
        status, text = http_get(machine.port(manifests.WEB_PORT), f"/file/{name}", timeout=5.0)
        return text if status == 200 else ""

    text: str = wait(machine, "the web pod", ask)
    return text
