"""The live view of a node: state, services, pods and the last events, redrawn in place on a terminal.

Where the output is no terminal, events are written as they come, a line each.
"""

import shutil
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from initd.api.protocol import ApiError
from initd.client import views
from initd.client.connection import Client
from initd.client.output import Style, clean

_IDLE_SECONDS = 1.0
_REDRAW_SECONDS = 0.2
_PODS_SECONDS = 5.0  # the node starts a worker to ask containerd
_RETRY_SECONDS = 1.0
_WRAP_OFF, _WRAP_ON, _CLEAR_BELOW = "\x1b[?7l", "\x1b[?7h", "\r\x1b[J"


def watch(
    connect: Callable[[], Client], file: TextIO, until: Callable[[], bool] = lambda: False, since: int = 0
) -> None:
    """Show the node until `until` says so (asked about once a second) or the user presses Ctrl-C (KeyboardInterrupt).

    connect is called again when the node goes away, as in a reboot. Where the output is no terminal, events up to the
    number since are not written: they have been. Raises what connect raises the first time.
    """
    client: Client | None = connect()
    view = _View(file, since)
    try:
        while not until():
            try:
                with client or connect() as asked:
                    view.follow(asked, until)
                if not until():
                    view.lost("it ended the stream of events")
            except (ConnectionError, LookupError, ApiError) as error:
                view.lost(str(error))
            client = None
    finally:
        view.screen.close()


class Screen:
    """Text that is drawn over itself on a terminal. close() when done."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._height = 0  # lines drawn, to be drawn over

    def draw(self, lines: list[str]) -> None:
        """Show these lines, as many as there is room for, in place of those before."""
        shown = lines[: shutil.get_terminal_size().lines - 1]
        up = f"\x1b[{self._height}A" if self._height else ""
        self._height = len(shown)
        self._file.write("".join([_WRAP_OFF, up, _CLEAR_BELOW, *(f"{line}\n" for line in shown)]))
        self._file.flush()

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._file.write(_WRAP_ON if self._height else "")
        self._file.flush()


class _View:
    def __init__(self, file: TextIO, since: int) -> None:
        self._file = file
        self.screen = Screen(file)
        self._terminal = file.isatty()
        self._style = Style(file)
        self._boot = ""
        self._seen = 0 if self._terminal else since  # the number of the last event, in that boot
        self._events: deque[str] = deque(maxlen=200)
        self._pods = ""
        self._pods_at = 0.0

    def follow(self, client: Client, until: Callable[[], bool]) -> None:
        """Show the node until it ends the stream, or until() is true. Raises ConnectionError, ApiError."""
        drawn = 0.0
        boot = client.call("version")["boot_id"]
        if self._boot not in {"", boot}:
            self._seen = 0
            self._events.clear()
        self._boot = boot
        for event in client.stream("events", self._seen, True, idle=_IDLE_SECONDS):
            if event:
                self._seen = event.get("seq", self._seen)
                self._events.append(views.event(event, self._style))
            now = time.monotonic()
            if not self._terminal and event:
                print(self._events[-1], file=self._file, flush=True)
            elif self._terminal and now - drawn >= _REDRAW_SECONDS:
                self.screen.draw(self._lines(client, now))
                drawn = now
            if until():
                return

    def lost(self, reason: str) -> None:
        """Say that the node is gone, and wait a moment."""
        line = f"{self._style.paint('waiting for the node', 'yellow')}: {clean(reason)}"
        if self._terminal:
            self.screen.draw([line])
        else:
            print(line, file=self._file, flush=True)
        time.sleep(_RETRY_SECONDS)

    def _lines(self, client: Client, now: float) -> list[str]:
        self._style = Style(self._file)  # the terminal may have another size by now
        if not self._pods or now - self._pods_at >= _PODS_SECONDS:
            try:
                self._pods = views.pods(client.call("pods"), self._style)
            except ApiError as error:  # containerd is not there yet, or not any more
                self._pods = self._style.paint(f"pods: {clean(error.message)}", "yellow")
            self._pods_at = now
        status = views.status(client.call("status"), self._style)
        services = views.services(client.call("services"), self._style)
        lines = f"{status}\n\n{services}\n\n{self._pods}\n\n".splitlines()
        room = shutil.get_terminal_size().lines - len(lines) - 1
        return lines + list(self._events)[-room:] if room > 0 else lines
