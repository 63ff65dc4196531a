"""What the network worker's tests run beside it: two network namespaces, the worker's link, DHCP servers."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initd import native
from initd.api.protocol import Decoder, Notification, Request, Response, encode

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 20.0  # seconds; everything here takes milliseconds on an idle machine
LEASE = ("--dhcp-range=10.5.0.50,10.5.0.60,255.255.255.0,120",)
SHORT = (
    "--dhcp-option-force=option:T1,3",  # dnsmasq takes nothing shorter
    "--dhcp-option-force=option:T2,100",
)


class Lines:
    """Lines that a process writes, with a deadline instead of a wait for ever."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        self._fd = process.stdout.fileno()
        self._rest = b""

    def are_there(self) -> bool:
        """Whether something was written within a tenth of a second."""
        return bool(select.select([self._fd], [], [], 0.1)[0])

    def until(self, text: str) -> str:
        """The first line from here on that holds the text."""
        return self.before(text).splitlines()[-1]

    def before(self, text: str) -> str:
        """All lines from here on, up to the first that holds the text."""
        end = time.monotonic() + DEADLINE
        seen = b""
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                seen += line + b"\n"
                if text.encode() in line:
                    return seen.decode()
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._fd, 65536) if ready else b""
            if not data:
                raise AssertionError(f"no line with {text!r}; there was: {(seen + self._rest).decode()}")
            self._rest += data


class Namespace:
    """A network namespace that lives as long as a process of the test's own: nothing is left behind by a crash."""

    def __init__(self) -> None:
        argv = ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        Lines(self._holder).until("made")
        self.pid = self._holder.pid

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def argv(self, *command: str) -> list[str]:
        """The command as run in the namespace."""
        return ["nsenter", "--target", str(self.pid), "--net", *command]

    def ip(self, *arguments: str) -> str:
        """Run a command of iproute2 and return its output."""
        return subprocess.run(self.argv("ip", *arguments), check=True, capture_output=True, text=True).stdout

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a process whose output is a pipe."""
        return subprocess.Popen(
            self.argv(*command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPOSITORY, bufsize=0
        )


RUN = """
import sys
from initd import worker
worker.QUIET_SECONDS = float(sys.argv[1])
sys.exit(worker.main("network", kept=int(sys.argv[2])))
"""


class Worker:
    """The worker as PID 1 starts it, and PID 1's side of its link. kept: a descriptor from an earlier one's rest."""

    def __init__(self, namespace: Namespace, quiet: float = 1000.0, kept: int | None = None) -> None:
        self._socket, theirs = socket.socketpair()
        given = [theirs.fileno(), *([] if kept is None else [kept])]

        def arrange() -> None:
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in given]
            for number, fd in enumerate(high, 3):
                os.dup2(fd, number)

        with theirs:
            self._process = subprocess.Popen(
                namespace.argv(sys.executable, "-c", RUN, str(quiet), str(len(given) - 1)),
                cwd=REPOSITORY,
                pass_fds=range(3, 3 + len(given)),
                preexec_fn=arrange,  # noqa: PLW1509 - one thread
            )
        if kept is not None:
            os.close(kept)
        self.pid = self._process.pid
        self._decoder = Decoder()
        self._inbox: list[Any] = []
        self._calls = 0
        self.state: dict[str, Any] = {}
        self.times: list[dict[str, Any]] = []  # heard, and not asked for yet

    def _receive(self, end: float) -> Any:
        while not self._inbox:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            data = self._socket.recv(65536)
            assert data, "the worker closed its link"
            self._inbox += self._decoder.feed(data)
        message = self._inbox.pop(0)
        if isinstance(message, Notification) and message.method in ("state", "time"):
            said: Any = message.params[0]
            if message.method == "state":
                self.state = said
            else:
                self.times.append(said)
        return message

    def call(self, method: str, *params: object) -> Any:
        """A request's result."""
        self._calls += 1
        self._socket.sendall(encode(Request(self._calls, method, list(params))))
        end = time.monotonic() + DEADLINE
        while True:
            message = self._receive(end)
            if isinstance(message, Response) and message.msgid == self._calls:
                assert message.error is None
                return message.result

    def wait(self, condition: Callable[[dict[str, Any]], Any], within: float = DEADLINE) -> dict[str, Any]:
        """The first state, the last one told included, that fulfils the condition."""
        end = time.monotonic() + within
        while not (self.state and condition(self.state)):
            try:
                self._receive(end)
            except TimeoutError:
                raise AssertionError(f"the state stayed {self.state}") from None
        return self.state

    def heard_of_time(self) -> dict[str, Any]:
        """What the worker heard of the time next."""
        end = time.monotonic() + DEADLINE
        while not self.times:
            self._receive(end)
        return self.times.pop(0)

    def rested(self, meanwhile: Callable[[], object] = lambda: None) -> tuple[float | None, int]:
        """Wait until the worker offers to end, and end it after what happens meanwhile. Returns in how many seconds it
        wants to be back, and what wakes it.
        """
        self.call("links")  # an offer from before that is none any more
        end = time.monotonic() + DEADLINE
        while True:
            message = self._receive(end)
            if isinstance(message, Notification) and message.method == "idle":
                params: Any = message.params
                received, wake_after, (number,) = params
                assert received == self._calls
                pidfd = os.pidfd_open(self.pid)
                descriptor = native.pidfd_getfd(pidfd, number)
                os.close(pidfd)
                meanwhile()
                self._process.terminate()  # as PID 1 does
                assert self.close() == -signal.SIGTERM
                assert wake_after is None or isinstance(wake_after, float)
                return wake_after, descriptor

    def configure(
        self,
        *interfaces: dict[str, Any],
        lease: dict[str, Any] | None = None,
        clock: dict[str, Any] | None = None,
        **rest: object,
    ) -> None:
        """Give the worker its configuration."""
        self.call("configure", {"interfaces": list(interfaces), **rest}, lease, clock)

    def wakeups(self) -> int:
        """How often the worker has gone to sleep by itself."""
        with open(f"/proc/{self.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))

    def close(self) -> int:
        """Close PID 1's end; the worker's exit status."""
        self._socket.close()
        try:
            return self._process.wait(DEADLINE)
        finally:
            self._process.kill()


class Lan:
    """A cable between srv0 in the server's namespace and eth0 in the node's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server, self.node = Namespace(), Namespace()
        self._open: list[Worker | subprocess.Popen[bytes]] = []
        self.server.ip("link", "set", "lo", "up")

    def plug(self, name: str = "eth0") -> None:
        """Add the cable; its end in the node has the name."""
        self.server.ip("link", "add", "srv0", "type", "veth", "peer", "name", name, "netns", str(self.node.pid))
        self.server.ip("address", "add", "10.5.0.1/24", "dev", "srv0")
        self.server.ip("link", "set", "srv0", "up")

    def worker(self, quiet: float = 1000.0, kept: int | None = None) -> Worker:
        worker = Worker(self.node, quiet, kept)
        self._open.append(worker)
        return worker

    def dnsmasq(self, *options: str) -> subprocess.Popen[bytes]:
        """A DHCP server on the cable, ready to answer."""
        leases = self._folder / f"leases-{len(self._open)}"
        process = self.server.start(
            *(
                "dnsmasq",
                "--keep-in-foreground",
                "--log-facility=-",
                "--conf-file=/dev/null",
                "--user=root",
                "--port=0",
            ),
            *("--pid-file=", "--no-ping", "--bind-interfaces", "--interface=srv0", f"--dhcp-leasefile={leases}"),
            *(options or LEASE),
        )
        self._open.append(process)
        Lines(process).until("sockets bound")
        return process

    def monitor(self, *kinds: str) -> Lines:
        """What changes in the node from now on, as ip(8) tells it: proven by a change that it told."""
        process = self.node.start("ip", "-o", "monitor", "address", *kinds)
        self._open.append(process)
        lines = Lines(process)
        for number in range(1, 255):
            self.node.ip("address", "add", f"127.1.0.{number}/32", "dev", "lo")
            if lines.are_there():
                lines.until(f"127.1.0.{number}/32")
                return lines
        raise AssertionError("ip monitor tells nothing")

    def script(self, name: str, *arguments: str) -> Lines:
        """One of the scripts beside this file, run at the server's end."""
        process = self.server.start(sys.executable, str(Path(__file__).with_name(name)), *arguments)
        self._open.append(process)
        return Lines(process)

    def close(self) -> None:
        for item in self._open:
            if isinstance(item, Worker):
                item.close()
            else:
                item.send_signal(signal.SIGKILL)
                item.communicate()
        self.server.close()
        self.node.close()
