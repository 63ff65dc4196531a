"""The VMs that run on this host, by name.

Each VM has a folder in directory(), made by whoever started it, with api.sock, console.log and machine.json:
{"name": str, "pid": of the process that serves api.sock, "started": seconds since 1970}.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict


class Machine(TypedDict):
    """What machine.json holds."""

    name: str
    pid: int
    started: float


def directory() -> Path:
    """Where the VMs of this user have their folders. Nothing is made there."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/initd-{os.getuid()}"
    return Path(base, "initd", "vms")


def running() -> list[Machine]:
    """Return the VMs whose process is alive, by name. A folder left behind by a crash, or half made, is none."""
    machines = []
    for path in sorted(directory().glob("*/machine.json")):
        try:
            machine: Machine = json.loads(path.read_text(encoding="utf-8"))
            os.kill(machine["pid"], 0)
            machines.append(Machine(name=path.parent.name, pid=machine["pid"], started=float(machine["started"])))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue
    return machines


def resolve(name: str) -> str:
    """Return the path of a running VM's API socket. Raises LookupError that names those that run."""
    names = [machine["name"] for machine in running()]
    if name not in names:
        raise LookupError(f"no VM named {name}; running: {', '.join(names) or 'none (make boot starts one)'}")
    return str(directory() / name / "api.sock")
