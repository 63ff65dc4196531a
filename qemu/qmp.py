"""A small QMP client (https://www.qemu.org/docs/master/interop/qmp-spec.html) on a connected socket.

The `qemu.qmp` package of PyPI would do as well, but it claims the import name `qemu`, which is this package's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from qemu.errors import HarnessError, MachineStoppedError, MachineTimeoutError

Event: TypeAlias = Mapping[str, Any]


class QmpClient:
    """Runs commands and hands events to a callback, which is called in the client's own thread and must not block or
    call execute().
    """

    def __init__(self, connection: socket.socket, on_event: Callable[[Event], None]) -> None:
        self._socket = connection
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._pending: dict[int, queue.SimpleQueue[Mapping[str, Any] | None]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._read, name="qmp", daemon=True)
        self._thread.start()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = 30.0) -> Any:
        """Run a command and return its result. QMP's greeting need not be awaited: QEMU reads commands in order.

        Raises HarnessError with QEMU's words if the command fails, MachineStoppedError if QEMU is gone,
        MachineTimeoutError.
        """
        answer: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        with self._lock:
            if self._closed:
                raise MachineStoppedError(_gone(command))
            number = next(self._ids)
            self._pending[number] = answer
            request = {"execute": command, "arguments": dict(arguments or {}), "id": number}
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError:
                del self._pending[number]
                raise MachineStoppedError(_gone(command)) from None
        try:
            reply = answer.get(timeout=timeout)
        except queue.Empty:
            self._pending.pop(number, None)
            message = f"QMP {command}: no answer in {timeout:g} s"
            raise MachineTimeoutError(message) from None
        if reply is None:
            raise MachineStoppedError(_gone(command))
        if "error" in reply:
            message = f"QMP {command}: {reply['error'].get('desc', reply['error'])}"
            raise HarnessError(message)
        return reply["return"]

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        with contextlib.suppress(OSError):  # QEMU closed it first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._dispatch(json.loads(line))
        except (OSError, ValueError):
            pass  # a connection cut in the middle of a line is an end like any other
        with self._lock:
            self._closed = True
            waiting = list(self._pending.values())
        for answer in waiting:
            answer.put(None)

    def _dispatch(self, message: Mapping[str, Any]) -> None:
        if "event" in message:
            self._on_event(message)
        elif (answer := self._pending.pop(message.get("id", 0), None)) is not None:
            answer.put(message)


def _gone(command: str) -> str:
    return f"QMP {command}: QEMU is gone"
