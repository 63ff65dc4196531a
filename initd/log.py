"""PID 1's log: one record a line to the kernel log as JSON, and to the console in the form that suits it.

Works from the first instruction on: until `configure` has imported structlog, records wait in memory and go to the
console only. Neither the kernel log nor the console can block PID 1: both are written without waiting, and what does
not fit is dropped and counted. Nor does a record raise: no change of state ends halfway because its log line failed.
Source: the kernel's Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from initd.events import boottime

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

# syslog priorities in the facility "daemon" (3). None is below console_loglevel (4): a record that is would be printed
# by the kernel itself, synchronously, on a slow serial port.
PRIORITIES = {"debug": 3 << 3 | 7, "info": 3 << 3 | 6, "warning": 3 << 3 | 4, "error": 3 << 3 | 4}
RECORD_BYTES = 900  # the kernel refuses records over about 1 KiB
EARLY = 1000  # records kept for `configure`, should it never come
CONSOLE_BYTES = 64 << 10
COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "debug": "\x1b[2m"}
RESET = "\x1b[0m"


class Console:
    """The system console, written without ever waiting for it."""

    def __init__(self, path: str = "/dev/console") -> None:
        self._waiting = bytearray()
        self.dropped = 0
        self._told = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched = False
        self.form = "auto"
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # a machine without a console still boots
        self.is_terminal = self._fd >= 0 and os.isatty(self._fd)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on `loop` writes what a slow console has not taken; until then the next line does."""
        self._loop = loop
        self.flush()

    def write(self, line: str) -> None:
        """Queue one line and write what the console takes now; over `CONSOLE_BYTES` waiting, lines are dropped."""
        if self._fd < 0:
            return
        missing = self.dropped - self._told
        if missing and self._put(f"initd: {missing} console lines dropped"):
            self._told = self.dropped
        if not self._put(line):
            self.dropped += 1
        self.flush()

    def _put(self, line: str) -> bool:
        data = line.encode(errors="replace") + (b"\r\n" if self.is_terminal else b"\n")
        fits = len(self._waiting) + len(data) <= CONSOLE_BYTES
        if fits:
            self._waiting += data
        return fits

    def flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting)]
        except BlockingIOError:
            pass  # the loop, or the next line, goes on from here
        except OSError:
            self.dropped += self._waiting.count(b"\n")  # a console that hangs up loses its lines, not the node
            self._waiting.clear()
        if self._loop is not None and self._watched != bool(self._waiting):
            self._watched = not self._watched
            if self._watched:
                self._loop.add_writer(self._fd, self.flush)
            else:
                self._loop.remove_writer(self._fd)

    def human(self) -> bool:
        """Whether lines are for a person (a terminal, or told so) rather than JSON."""
        return self.form == "human" or (self.form == "auto" and self.is_terminal)


def human(level: str, event: str, fields: Mapping[str, object], *, colour: bool = False) -> str:
    """A record as a person reads it: `[   2.413] kubelet: running  pid=87`."""
    values = "".join(f" {key}={value}" for key, value in fields.items())
    mark = "" if level == "info" else f"{level}: "
    line = f"[{boottime():9.3f}] {mark}{event}{values}".replace("\n", " | ")
    # What a service or a lease says must not move a terminal's cursor.
    line = "".join(character if character.isprintable() else "\ufffd" for character in line)
    return f"{COLOURS[level]}{line}{RESET}" if colour and level in COLOURS else line


class _Log:
    """Where records go; one for the process."""

    def __init__(self) -> None:
        self.console: Console | None = None
        self.early: deque[tuple[str, str, dict[str, Any]]] = deque(maxlen=EARLY)
        self.render: Callable[[None, str, dict[str, Any]], str | bytes] | None = None
        self.kmsg = -1
        self.dropped = 0

    def record(self, level: str, event: str, fields: dict[str, Any]) -> None:
        console = self.console if level != "debug" else None
        try:
            if console is not None and (self.render is None or console.human()):
                console.write(human(level, event, fields, colour=console.is_terminal))
            fields = {"at": round(boottime(), 6), **fields}
            if self.render is None:
                self.early.append((level, event, fields))
                return
            text = str(self.render(None, level, {"event": event, **fields, "level": level}))
            if console is not None and not console.human():
                console.write(text)
            data = text.encode(errors="replace")
            for start in range(0, len(data), RECORD_BYTES):
                os.write(self.kmsg, b"<%d>initd: %b" % (PRIORITIES[level], data[start : start + RECORD_BYTES]))
        except Exception:  # noqa: BLE001 what cannot be written costs its record, not what is being done
            self.dropped += 1


_log = _Log()


def open_console(path: str = "/dev/console") -> Console:
    """Open the console for this process's records; never fails (see `Console`)."""
    _log.console = Console(path)
    return _log.console


def forked() -> None:
    """In a copy of PID 1: let go of its console and kernel log, whose descriptors are closed there."""
    _log.console, _log.kmsg, _log.render = None, -1, None


def flush() -> None:
    """Write to the console what it takes now; only for when no loop does (see `Console.attach`)."""
    if _log.console is not None:
        _log.console.flush()


def _record(level: str, event: str, /, **fields: Any) -> None:
    _log.record(level, event, fields)


debug = partial(_record, "debug")  # what only someone who looks for a fault wants
info = partial(_record, "info")  # what happened
warning = partial(_record, "warning")  # what went wrong and was dealt with
error = partial(_record, "error")  # what went wrong and needs someone


def exception(event: str, failure: BaseException, **fields: Any) -> None:
    """Record `failure` with its traceback."""
    import traceback  # noqa: PLC0415 rarely needed, and it costs the start of every boot

    text = "".join(traceback.format_exception(failure))
    _log.record("error", event, fields | {"error": f"{type(failure).__name__}: {failure}", "traceback": text[-4000:]})


def configure(form: str = "auto", kmsg: str = "/dev/kmsg") -> None:
    """Import structlog, let it render every later record, and replay the early ones to the kernel log.

    `form` is the console's: human, json, or auto (human on a terminal).
    """
    import structlog  # noqa: PLC0415 heavy: it imports asyncio

    try:
        _log.kmsg = os.open(kmsg, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as failure:
        warning("kernel log not writable", error=str(failure))
    if _log.console is not None:
        _log.console.form = form
    _log.render = structlog.processors.JSONRenderer()
    console, _log.console = _log.console, None  # which has shown them
    while _log.early:
        _log.record(*_log.early.popleft())
    _log.console = console
