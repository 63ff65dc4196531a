"""What `python -m qemu boot` says: lines as a boot goes on, or one JSON object at its end."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from initd.api.types import VersionInfo
    from qemu.errors import HarnessError
    from qemu.machine import Machine


class Report:
    """Collects one boot. With lines, it also prints what happens while it happens."""

    def __init__(self, machine: Machine, until: str, *, lines: bool) -> None:
        self._machine = machine
        self._until = until
        self._lines = lines
        self._phases: list[Mapping[str, Any]] = []
        self._version: VersionInfo | None = None
        self._error = ""
        self._detail = ""
        self._seconds = 0.0

    def started(self) -> None:
        """QEMU runs."""
        self._say(f"VM {self._machine.name} runs ({self._machine.accelerator}); its console is {self._machine.console}")

    def event(self, event: Mapping[str, Any]) -> None:
        """Take one event of the node."""
        if event["kind"] == "phase":
            self._phases.append(event)
        if text := describe(event):
            self._say(f"{event['monotonic']:7.2f} s  {text}")

    def reached(self, version: VersionInfo) -> None:
        """The event came, and version is who echoed the nonce."""
        self._version = version
        self._seconds = time.monotonic() - self._machine.started
        self._say(
            f"{self._until} after {self._seconds:.1f} s; initd {version['version']} on Linux {version['kernel']}"
            " echoed the nonce",
        )

    def failed(self, error: HarnessError) -> None:
        """The event did not come, or no nonce came back."""
        self._error = f"{error.message}; {error.hint}" if error.hint else error.message
        self._detail = error.detail
        self._seconds = time.monotonic() - self._machine.started if self._machine.started else 0.0
        if self._lines:
            print(f"{error.detail}\nqemu: {self._error}".lstrip(), file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Print the JSON object, unless lines were printed."""
        if not self._lines:
            print(json.dumps(self.result(), indent=2))

    def result(self) -> dict[str, Any]:
        """The whole boot as plain data: seconds from QEMU's start, phases as the node's events have them."""
        return {
            "name": self._machine.name,
            "accelerator": self._machine.accelerator,
            "until": self._until,
            "reached": self._version is not None,
            "verdict": "echoed" if self._version is not None else "none",
            "seconds": round(self._seconds, 3),
            "version": self._version,
            "phases": self._phases,
            "error": self._error or None,
            "detail": self._detail or None,
        }

    def _say(self, text: str) -> None:
        if self._lines:
            print(text, flush=True)


def describe(event: Mapping[str, Any]) -> str:
    """Return a line for an event that someone who watches a boot wants to see, "" for others."""
    match event:
        case {"kind": "phase", "name": name, "index": index, "total": total, "status": status}:
            error = f": {event['error']}" if event.get("error") else ""
            return f"phase {index:>2}/{total} {name:<14} {status}, {event.get('milliseconds', 0):.0f} ms{error}"
        case {"kind": "service", "name": name, "state": state}:
            return f"service {name}: {state}"
        case {"kind": "network", "ready": True, "address": address}:
            return f"network: {address}"
        case {"kind": "node", "phase": phase, "ready": ready}:
            reasons = ", ".join(event.get("reasons", ()))
            return (
                f"node: {phase}, ready" if ready else f"node: {phase}, not ready" + (f" ({reasons})" if reasons else "")
            )
    return ""
