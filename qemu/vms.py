"""The VMs that run on this host, by name.

Each VM has a folder in directory(), made by whoever started it, with api.sock, console.log and machine.json:
{"name": str, "pid": of the process that serves api.sock, "started": seconds since 1970}.
"""

import json
import os
import re
from pathlib import Path
from typing import TypedDict

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Machine(TypedDict):
    """What machine.json holds."""

    name: str
    pid: int
    started: float


def checked(name: str) -> str:
    """Return a VM's name, by which folders are made and removed. Raises ValueError for what cannot be one."""
    if not _NAME.fullmatch(name):
        expected = "a letter or digit, then at most 63 of letters, digits, dots, dashes and underscores"
        raise ValueError(f"found VM name {name!r}, expected {expected}")
    return name


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
    """Return the path of a running VM's API socket. Raises LookupError that names those that run; see checked()."""
    checked(name)
    names = [machine["name"] for machine in running()]
    if name not in names:
        raise LookupError(f"no VM named {name}; running: {', '.join(names) or 'none (make boot starts one)'}")
    return str(directory() / name / "api.sock")
