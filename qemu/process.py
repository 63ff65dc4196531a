"""A process that cannot outlive the harness that started it, watched so that nobody waits for a dead one."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

from qemu.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Process:
    """One program. on_exit is called with its exit status, in a thread of its own, once it is gone."""

    def __init__(self, command: Sequence[str], fds: Sequence[int], log: Path, on_exit: Callable[[int], None]) -> None:
        # The kernel sends the parent-death signal when the *thread* that forked ends, so the thread that starts it is
        # the one that waits for it.
        self._name = command[0].rpartition("/")[2]
        self._command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        self._fds = tuple(fds)
        self._log = log
        self._on_exit = on_exit
        self._started = threading.Event()
        self._exited = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        """Start it. Raises HarnessError if it cannot be executed; what it says later is in the log."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise HarnessError(f"cannot start {self._name}: {self._error}")

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """The exit status (negative: the signal), None while it runs."""
        return self._process.returncode if self._process and self._exited.is_set() else None

    def wait(self, timeout: float) -> bool:
        """Wait until it is gone; False if it still runs after timeout seconds."""
        return self._exited.wait(timeout)

    def kill(self) -> None:
        """End it now, and wait for that."""
        if self._process is not None:
            self._process.kill()
            self._thread.join()

    def _run(self) -> None:
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=self._fds,
                    start_new_session=True,  # Ctrl-C is for the harness, which then powers the machine off
                )
        except OSError as error:
            self._error = error
            self._started.set()
            return
        self._started.set()
        status = self._process.wait()
        self._exited.set()
        self._on_exit(status)
