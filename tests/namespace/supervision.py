"""What tests of supervision share: PID 1's loop and reaper without a boot, services made of a few lines of Python."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from initd import init, native
from initd.node import Node
from initd.services import ServiceSpec
from initd.supervise.service import Service

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
PYTHON = (sys.executable, "-I", "-S", "-c")
TELL = """
import os, signal, socket
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
"""


class Init:
    """A node without boot: its loop, its reaper, its services."""

    def __init__(self) -> None:
        self.node = Node()
        self.node.loop = asyncio.get_running_loop()
        signals = native.signalfd([signal.SIGCHLD])
        self.node.loop.add_reader(signals, init._on_signal, self.node, signals)

    def service(self, argv: tuple[str, ...], **options: Any) -> Service:
        service = Service(
            ServiceSpec("probe", argv, ENVIRONMENT, "probe", **{"stop_seconds": 0.3, **options}),
            self.node.events,
            self.node.reaper,
        )
        service.changed = self.node.service_changed
        self.node.services["probe"] = service
        service.attach(asyncio.get_running_loop())
        return service


Scene = Callable[[Callable[[Init], Coroutine[Any, Any, Any]]], Any]


def replaced(service: Service, pid: int) -> bool:
    return service.process is not None and service.process.pid != pid
