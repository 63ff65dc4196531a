"""A running native/rescue.c: process 1 of a pid namespace, executed from a memfd, with nothing but /dev and /proc.

It is talked to from inside its pid namespace, else the kernel could not tell it who connects.
"""

from __future__ import annotations

import fcntl
import functools
import os
import pickle
import re
import select
import signal
import socket
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from initd import native
from initd.api.protocol import Decoder, Message, Request, Response, encode
from initd.client.connection import Client
from initd.native import MountFlag, Spawn
from tests.namespace import calls
from tests.namespace.calls import Namespace
from tests.namespace.test_native_programs import build

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
DEADLINE = 20.0  # seconds
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
PROGRAM, LISTENER, WATCHDOG, FIRST_PIPE = 3, 4, 5, 6  # its descriptors
REBOOT, POWER_OFF = signal.SIGHUP, signal.SIGINT  # what ends process 1 of a pid namespace that calls reboot(2)
SYS_BOOT, LAST_CAPABILITY = 22, 40  # capabilities(7)


def sealed(program: Path) -> int:
    """A memfd as PID 1 makes it at boot."""
    descriptor = os.memfd_create("rescue", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, program.read_bytes())
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return descriptor


@functools.cache
def program() -> int:
    """The program as the image has it."""
    with tempfile.TemporaryDirectory() as folder:
        build("program", "rescue", "--output", f"{folder}/rescue")
        return sealed(Path(folder, "rescue"))


def become(root: Path, argv: tuple[str | bytes, ...], env: Mapping[str, str], *, may_reboot: bool) -> NoReturn:
    """Be the PID 1 that cannot go on."""
    native.mount("", "/", "", MountFlag.REC | MountFlag.PRIVATE)
    native.mount("proc", str(root / "proc"), "proc")
    native.sethostname("node-1")
    if not may_reboot:
        calls.drop_capabilities([number for number in range(LAST_CAPABILITY + 1) if number != SYS_BOOT])
    os.chroot(root)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what PID 1 leaves behind must not matter
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.execve(PROGRAM, argv, env)  # noqa: S606 - a shell is what it does without


class Rescue:
    """A rescue that runs; `console` and `kmsg` are the read ends of what it writes there."""

    def __init__(self, folder: Path, program: int) -> None:
        self.root, self.path = folder / "root", folder / "api.sock"
        self._program = program
        self.child: native.Child | None = None
        (self.root / "dev").mkdir(parents=True)
        (self.root / "proc").mkdir()
        self.console, self.kmsg = map(self._fifo, ("console", "kmsg"))
        for part in (folder, *folder.parents):  # pytest's folders are its user's only
            if part.is_relative_to("/tmp") and str(part) not in ("/", "/tmp"):
                part.chmod(0o755)

    def _fifo(self, name: str) -> int:
        os.mkfifo(self.root / "dev" / name)
        return os.open(self.root / "dev" / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def start(
        self,
        reason: bytes = b"a test",
        env: Mapping[str, str] = MappingProxyType({}),
        *,
        watchdog: int | None = None,
        pipes: tuple[int, ...] = (),
        limits: Mapping[int, tuple[int, int]] | None = None,
        may_reboot: bool = True,
    ) -> None:
        """Start it with a listener, and with what else is given."""
        fds = {2: 2, PROGRAM: self._program} | {FIRST_PIPE + place: pipe for place, pipe in enumerate(pipes)}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen(64)
            self.path.chmod(0o666)
            fds[LISTENER] = listener.fileno()
            env = {"INITD_LISTENER": str(LISTENER), **env}
            if watchdog is not None:
                fds[WATCHDOG] = watchdog
                env["INITD_WATCHDOG"] = str(WATCHDOG)
            if pipes:
                env["INITD_PIPES"] = " ".join(str(FIRST_PIPE + place) for place in range(len(pipes)))
            namespaces = Namespace.PID | Namespace.MOUNT | Namespace.UTS
            child = native.spawn(Spawn((), {}, fds=fds, namespaces=namespaces, rlimits=limits or {}))
            if child.pid == 0:
                try:
                    become(self.root, (b"rescue", reason), env, may_reboot=may_reboot)
                finally:
                    traceback.print_exc()
                    os._exit(1)
        self.child = child

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def wait(self) -> int:
        """The signal that ends it: REBOOT or POWER_OFF."""
        assert self.child is not None
        assert select.select([self.child.pidfd], [], [], DEADLINE)[0], "it goes on"
        end = native.wait_pid(self.child.pid)
        os.close(self.child.pidfd)
        self.child = None
        assert end is not None
        assert end.code == os.CLD_KILLED
        return end.status

    def signal(self, number: int) -> None:
        assert self.child is not None
        native.pidfd_send_signal(self.child.pidfd, number)

    def call(self, method: str, *params: object) -> Any:
        """Call it with the client that everyone uses, as root in its pid namespace."""

        def body() -> Any:
            with Client(str(self.path)) as client:
                return client.call(method, *params)

        return self.inside(body)

    def connect(self, uid: int = 0, cgroup: Path | None = None) -> socket.socket:
        """Return a connection that belongs to such a process, whoever uses it: what counts is who connected."""
        connection = self.connect_from_outside(connected=False)

        def body() -> None:
            connection.connect(str(self.path))
            exchange(connection, "status")  # from then on it is known whose it is

        self.inside(body, uid, cgroup)
        return connection

    def connect_from_outside(self, *, connected: bool = True) -> socket.socket:
        """Return a connection of this process, which the rescue cannot know: outside of its pid namespace."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE)
        if connected:
            connection.connect(str(self.path))
        return connection

    def inside(self, body: Callable[[], T], uid: int = 0, cgroup: Path | None = None) -> T:
        """Return what `body` does in a process in the pid namespace, of this user, in this cgroup."""
        source, report = os.pipe2(os.O_CLOEXEC)
        middle = os.fork()
        if middle == 0:
            outcome: tuple[bool, object] = (False, "not even begun")
            try:
                assert self.child is not None
                calls.setns(self.child.pidfd, Namespace.PID)
                if pid := os.fork():
                    os.waitpid(pid, 0)
                    os._exit(0)
                if cgroup:
                    (cgroup / "cgroup.procs").write_text("0")
                os.setgid(uid)
                os.setuid(uid)
                outcome = (True, body())
            except BaseException:  # noqa: BLE001 - an assertion, or pytest's own exceptions: all fail the test
                outcome = (False, traceback.format_exc())
            finally:
                with suppress(OSError):
                    os.write(report, pickle.dumps(outcome))
                os._exit(0)
        os.close(report)
        with open(source, "rb") as stream:
            assert select.select([stream], [], [], 3 * DEADLINE)[0], "nothing comes from the pid namespace"
            succeeded, value = pickle.load(stream)  # noqa: S301 - our own child's
        os.waitpid(middle, 0)
        assert succeeded, value
        result: Any = value
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        if self.child is not None:
            self.signal(signal.SIGKILL)
            self.wait()
        os.close(self.console)
        os.close(self.kmsg)


def receive(connection: socket.socket) -> Message:
    """Return one message. Raises ConnectionError at the end of the connection."""
    decoder = Decoder()
    while data := connection.recv(1):
        if messages := decoder.feed(data):
            return messages[0]
    raise ConnectionError


def exchange(connection: socket.socket, method: str, *params: object, msgid: int = 1) -> Response:
    """Call a method and return the response."""
    connection.sendall(encode(Request(msgid, method, list(params))))
    message = receive(connection)
    assert isinstance(message, Response)
    assert message.msgid == msgid
    return message


def code(response: Response) -> str | None:
    """Return the error's code, None for a result."""
    if response.error is None:
        return None
    error: Any = response.error
    assert [type(part) for part in error] == [str, str]
    return str(error[0])


def read_until(descriptor: int, pattern: str) -> str:
    """What is written up to the pattern's end, and a bit more."""
    text, end = "", time.monotonic() + DEADLINE
    while not re.search(pattern, text, re.DOTALL):
        left = max(end - time.monotonic(), 0)
        assert select.select([descriptor], [], [], left)[0], f"no {pattern!r} in {text!r}"
        text += os.read(descriptor, 1 << 16).decode()
    return text


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.005)  # what is asked has no event, and to ask holds a lock that the rescue needs


def fill(descriptor: int) -> None:
    """Write until it would block."""
    os.set_blocking(descriptor, False)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * 4096)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x")


def closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection; False if something comes instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
