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
    _unfinished: str = field(default="", init=False)  # the step whose line still waits for its seconds

    def _paint(self, code: int, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.stream.isatty() else text

    def _say(self, text: str, end: str = "\n") -> None:
        """Print `text` on a line of its own, even while a step's line is unfinished."""
        start = "\n" if self._unfinished else ""
        self._unfinished = ""
        print(start + text, end=end, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """One line of information: a wait, a choice."""
        self._say(f"{self._paint(36, 'note:')} {text}")

    def warn(self, text: str) -> None:
        """One line about something that works but should be looked at."""
        self._say(f"{self._paint(33, 'warning:')} {text}")

    def error(self, error: BuildError) -> None:
        """The last line of a build that failed."""
        self._say(f"{self._paint(31, 'error:')} {error.message}; {error.hint}")

    @contextmanager
    def step(self, name: str, what: str, expected: float) -> Iterator[None]:
        """Announce `name`, `what` it is and the `expected` seconds; complete the line with the seconds it took."""
        self._say(f"{self._paint(1, name)}: {what} (about {duration(expected)}) ... ", end="")
        self._unfinished = name
        begin = time.monotonic()
        try:
            yield
        except BaseException:
            self._finish(name, self._paint(31, "failed"))
            raise
        self._finish(name, self._paint(32, duration(time.monotonic() - begin)))

    def _finish(self, name: str, outcome: str) -> None:
        if self._unfinished == name:
            self._unfinished = ""
            print(outcome, file=self.stream, flush=True)
        else:  # other lines came in between
            self._say(f"{self._paint(1, name)}: {outcome}")
