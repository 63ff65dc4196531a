"""What a person sees of a build: one line a step, and errors that say what to do next."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator


class BuildError(Exception):
    """A build cannot go on. `message` says in one line what is wrong, `hint` what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def duration(seconds: float) -> str:
    """`seconds` the way people say it: 0.4 s, 12 s, 3 min 45 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass
class Progress:
    """Prints steps to `stream` (standard error by default, so that standard output stays machine-readable)."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def _paint(self, code: int, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.stream.isatty() else text

    def note(self, text: str) -> None:
        """One line of information: a wait, a choice."""
        print(self._paint(36, "note:"), text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """One line about something that works but should be looked at."""
        print(self._paint(33, "warning:"), text, file=self.stream, flush=True)

    def error(self, error: BuildError) -> None:
        """The last line of a build that failed."""
        print(self._paint(31, "error:"), f"{error.message}; {error.hint}", file=self.stream, flush=True)

    @contextmanager
    def step(self, name: str, what: str, expected: float) -> Iterator[None]:
        """Announce `name`, `what` it is and the `expected` seconds; complete the line with the seconds it took."""
        print(f"{self._paint(1, name)}: {what} (about {duration(expected)}) ... ", end="", file=self.stream, flush=True)
        begin = time.monotonic()
        try:
            yield
        except BaseException:
            print(self._paint(31, "failed"), file=self.stream, flush=True)
            raise
        print(self._paint(32, duration(time.monotonic() - begin)), file=self.stream, flush=True)
