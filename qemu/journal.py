"""What a node said, boot by boot, for any number of threads that wait for it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from qemu.errors import MachineStoppedError, MachineTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from initd.api.types import VersionInfo
    from qemu.until import Condition


class Journal:
    """The events of all boots of one machine; sequence numbers count anew in each. It is the bridge's Observer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._boots: list[list[Mapping[str, Any]]] = [[]]
        self._boot_id = ""  # of the last boot that answered
        self._count = 0  # boots that answered
        self._answering = False  # False from a reset on until a node answers
        self._stopped = ""

    # What happens to the machine.

    def answered(self, version: VersionInfo) -> int:
        with self._changed:
            if version["boot_id"] != self._boot_id:
                if self._boots[-1]:
                    self._boots.append([])
                self._boot_id = version["boot_id"]
                self._count += 1
            self._answering = True
            self._changed.notify_all()
            return self.last_seq

    def event(self, event: Mapping[str, Any]) -> None:
        with self._changed:
            # After a reset there may still be events of the boot that it ended on their way.
            if self._answering and event.get("seq", 0) > self.last_seq:
                self._boots[-1].append(event)
                self._changed.notify_all()

    def reset(self) -> None:
        """End the boot: what waits from now on waits for the next one."""
        with self._changed:
            self._answering = False
            if self._boots[-1]:
                self._boots.append([])
            self._changed.notify_all()

    def stop(self, reason: str) -> None:
        """End everything: whoever waits gets MachineStoppedError with this reason."""
        with self._changed:
            self._stopped = reason
            self._changed.notify_all()

    # What tests ask.

    @property
    def last_seq(self) -> int:
        """The sequence number of the last event in this boot, 0 if there is none."""
        boot = self._boots[-1]
        return int(boot[-1]["seq"]) if boot else 0

    @property
    def boot_id(self) -> str:
        """The boot that answered last, "" if none did."""
        return self._boot_id

    @property
    def boots(self) -> int:
        """How many boots answered, whether they said anything or not."""
        return self._count

    def history(self) -> list[list[Mapping[str, Any]]]:
        """Return the events of every boot that said something."""
        with self._changed:
            return [list(boot) for boot in self._boots if boot]

    def events(self, since: int, timeout: float) -> Iterator[Mapping[str, Any]]:
        """Yield the events after since in this boot, then all of later boots, as they come.

        Raises MachineTimeoutError timeout seconds after the first was asked for, and MachineStoppedError once the
        machine stopped and all are told.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            boot = len(self._boots) - 1
            position = sum(event["seq"] <= since for event in self._boots[boot])
        while True:
            with self._changed:
                while position >= len(self._boots[boot]):
                    if boot + 1 < len(self._boots):
                        boot, position = boot + 1, 0
                        continue
                    self._wait(deadline, timeout)
                event = self._boots[boot][position]
                position += 1
            yield event

    def wait_for(self, condition: Condition, what: str, since: int, timeout: float) -> Mapping[str, Any]:
        """Return the first event after since for which condition holds."""
        try:
            return next(event for event in self.events(since, timeout) if condition(event))
        except MachineTimeoutError:
            raise MachineTimeoutError(f"{what}: did not come in {timeout:g} s") from None

    def wait_boot(self, after: str, timeout: float) -> str:
        """Return the boot_id of a boot that answers and is not `after`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._answering or self._boot_id == after:
                self._wait(deadline, timeout)
            return self._boot_id

    def _wait(self, deadline: float, timeout: float) -> None:
        if self._stopped:
            raise MachineStoppedError(self._stopped)
        left = deadline - time.monotonic()
        if left <= 0 or not self._changed.wait(left):
            raise MachineTimeoutError(f"nothing more came in {timeout:g} s")
