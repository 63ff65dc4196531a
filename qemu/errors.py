"""What the harness raises: one line that says what is wrong and, where there is one, a second that says what to do."""

from __future__ import annotations


class HarnessError(Exception):
    """The harness cannot do what it was asked. hint is the next step for whoever reads it, detail what helps to
    understand it (a console's tail).
    """

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        return "\n".join(part for part in (self.message, self.hint, self.detail) if part)


class MachineStoppedError(HarnessError):
    """QEMU is gone, so what was waited for cannot come."""


class MachineTimeoutError(HarnessError, TimeoutError):
    """What was waited for did not come in time."""
