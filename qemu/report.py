"""What `python -m qemu boot` says: lines as a boot goes on, or one JSON object at its end."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from initd.client import views
from initd.client.output import Style

if TYPE_CHECKING:
    from collections.abc import Mapping

    from initd.api.types import VersionInfo
    from qemu.errors import HarnessError
    from qemu.machine import Machine


_SHOWN = frozenset({"phase", "service", "node", "network", "shutdown"})  # what someone who watches a boot wants to see


class Report:
    """Collects one boot. With lines, it also prints what happens while it happens."""

    def __init__(self, machine: Machine, until: str, *, lines: bool) -> None:
        self._machine = machine
        self._until = until
        self._lines = lines
        self._style = Style(sys.stdout)
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
        if event["kind"] in _SHOWN:
            self._say(views.event(event, self._style))

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
