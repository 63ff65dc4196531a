"""Whether KVM runs a guest here, as opposed to merely being there.

/dev/kvm may exist and open and still not execute a kernel (nested virtualisation without the instructions that early
boot uses), so the only probe that means something is a boot. It takes a few hundred milliseconds where KVM works, and
its verdict is kept until the host reboots.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from pathlib import Path

from qemu.disks import cache

_TCG = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max")
_KVM = ("-accel", "kvm", "-cpu", "host")
_PROBE_SECONDS = 5.0
_ALIVE = b"Linux version"
_DEAD = b"KVM internal error"  # after which QEMU stays, paused


def arguments(qemu: str, kernel: Path) -> tuple[str, ...]:
    """Return QEMU's arguments for the fastest accelerator that runs kernel."""
    return _KVM if works(qemu, kernel) else _TCG


def works(qemu: str, kernel: Path) -> bool:
    """Say whether KVM boots kernel, from the verdict kept for this boot of the host or from a probe."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    verdict = cache() / "kvm.json"
    try:
        kept = json.loads(verdict.read_text(encoding="utf-8"))
        if kept["boot_id"] == boot:
            return bool(kept["works"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or one that is damaged: probe
    found = _probe(qemu, kernel)
    verdict.parent.mkdir(parents=True, exist_ok=True)
    new = verdict.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps({"boot_id": boot, "works": found}), encoding="utf-8")
    new.rename(verdict)
    return found


def _probe(qemu: str, kernel: Path) -> bool:
    """Boot kernel without a root until its first line."""
    command = [
        *(qemu, "-M", "q35", "-m", "512", *_KVM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-kernel", str(kernel), "-append", "console=ttyS0 earlyprintk=serial panic=-1"),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as guest:
        try:
            return guest.stdout is not None and _reaches(guest.stdout.fileno(), _ALIVE, _DEAD)
        finally:
            guest.kill()


def _reaches(output: int, alive: bytes, dead: bytes) -> bool:
    deadline = time.monotonic() + _PROBE_SECONDS
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while dead not in seen and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                data = os.read(output, 65536)
                if not data:
                    return False
                seen += data
                if alive in seen:
                    return True
    return False
