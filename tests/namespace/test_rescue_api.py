"""native/rescue.c's API: who may do what, and what it makes of whatever comes."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from initd.api.protocol import Code, Notification, Request, Response, encode
from tests.namespace.conftest import cgroup2_root
from tests.namespace.rescue_process import REBOOT, Rescue, closed, code, exchange, program, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

FRAME_MAX, CONNECTIONS = 4096, 16


@pytest.fixture
def rescue(tmp_path: Path) -> Iterator[Rescue]:
    """To be started by the test."""
    made = Rescue(tmp_path, program())
    yield made
    made.close()


@pytest.fixture
def pods() -> Iterator[list[Path]]:
    """A pod's cgroup with each of the kubelet's cgroup drivers, and one that only looks like it."""
    root = cgroup2_root()
    paths = [root / name / f"test-{os.getpid()}" for name in ("kubepods", "kubepods.slice", "kubepodsy")]
    for path in paths:
        path.mkdir(parents=True)
    yield paths
    for path in paths:
        path.rmdir()
        with suppress(OSError):  # another test's pods may be there
            path.parent.rmdir()


def test_who_may_do_what(rescue: Rescue, pods: list[Path]) -> None:
    rescue.start()
    *in_pods, elsewhere = pods
    peers = [
        (rescue.connect(), None),
        (rescue.connect(cgroup=elsewhere), None),
        (rescue.connect(1234), Code.PERMISSION_DENIED),
    ]
    with ExitStack() as stack:
        for pod in in_pods:
            for uid in (0, 1234):
                connection = stack.enter_context(rescue.connect(uid, pod))
                for method in ("status", "version", "reboot", "shutdown", "other"):
                    assert code(exchange(connection, method)) == Code.PERMISSION_DENIED
        outsider = stack.enter_context(rescue.connect_from_outside())
        assert code(exchange(outsider, "status")) == Code.PERMISSION_DENIED
        for connection, _ in peers:
            stack.enter_context(connection)
            assert code(exchange(connection, "status")) is None
        for connection, expected in reversed(peers):
            assert code(exchange(connection, "reboot")) == expected
        assert rescue.wait() == REBOOT


@pytest.mark.parametrize("reused", [False, True])
def test_a_peer_that_has_ended_may_do_nothing(rescue: Rescue, reused: bool) -> None:
    """Its connection lives on in another process, and its pid may be a third one's."""
    rescue.start()
    connection = rescue.connect_from_outside(connected=False)

    def connect() -> int:
        connection.connect(str(rescue.path))
        return os.getpid()

    rescue.signal(signal.SIGSTOP)  # it sees the connection only when the peer has ended
    gone = rescue.inside(connect)

    def ask() -> Response:
        child = -1
        if reused:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(gone - 1))
            if (child := os.fork()) == 0:
                signal.pause()
            assert child == gone
        os.kill(1, signal.SIGCONT)
        try:
            return exchange(connection, "reboot")
        finally:
            if child > 0:
                os.kill(child, signal.SIGKILL)

    with connection:
        response: Any = rescue.inside(ask)
    assert (response.error[0], response.error[1].endswith("(gone)")) == (Code.PERMISSION_DENIED, True)


def test_an_admin_always_gets_in(rescue: Rescue) -> None:
    rescue.start()
    with ExitStack() as stack:
        readers = [stack.enter_context(rescue.connect(1234)) for _ in range(CONNECTIONS)]
        admins = [stack.enter_context(rescue.connect()) for _ in range(CONNECTIONS)]
        assert all(closed(reader) for reader in readers)
        assert closed(stack.enter_context(rescue.connect_from_outside()))
        assert code(exchange(admins[0], "status")) is None  # now another one was silent for longest
        stack.enter_context(rescue.connect())
        assert closed(admins[1])
        for admin in [admins[0], *admins[2:]]:
            assert code(exchange(admin, "status")) is None


def test_a_client_that_does_not_read_is_closed(rescue: Rescue) -> None:
    rescue.start()
    with rescue.connect() as deaf, rescue.connect() as other:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            deaf.sendall(encode(Request(7, "status", [])) * 1_000_000)
        assert code(exchange(other, "status")) is None


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rescue, socket.socket]]:
    """One that runs, and an admin's connection to it, for tests of what it reads."""
    made = Rescue(tmp_path_factory.mktemp("shared"), program())
    made.start(env={"INITD_RESCUE_SECONDS": "0"})
    with made.connect() as connection:
        yield made, connection
    made.close()


SCALARS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(SCALARS, inner), max_leaves=30)


@settings(max_examples=300)
@given(msgid=st.integers(0, (1 << 32) - 1), params=st.lists(PLAIN, max_size=20), cut=st.integers(1, 400))
def test_all_plain_data_is_passed_over(
    shared: tuple[Rescue, socket.socket], msgid: int, params: list[object], cut: int
) -> None:
    """Whatever the parameters are, and however they arrive, the next frame begins where they end."""
    _, admin = shared
    frame = msgpack.packb([0, msgid, "status", params])
    assume(len(frame) <= FRAME_MAX)
    admin.sendall(frame[:cut])
    admin.sendall(frame[cut:] + encode(Notification("cancel", [1])) + encode(Request(3, "other", [])))
    first, second = receive(admin), receive(admin)
    assert isinstance(first, Response)
    assert isinstance(second, Response)
    assert (first.msgid, first.error) == (msgid, None)
    assert (second.msgid, code(second)) == (3, Code.UNAVAILABLE)


FRAMES: st.SearchStrategy[list[object]] = st.lists(
    st.sampled_from([0, 1, 2, -1, 1 << 32, "status", [], {}, None, 1.5, True, b"status"]), max_size=5
)


@settings(max_examples=300)
@given(data=st.binary(max_size=6000) | FRAMES.map(msgpack.packb))
@example(msgpack.packb([1, 1, None, None]))
@example(msgpack.packb(msgpack.ExtType(1, b"x")))
@example(b"\xc1")
@example(b"\xdf" + b"\xff" * 4095)
@example(b"\x91" * 5000)
def test_garbage_ends_its_own_connection_only(shared: tuple[Rescue, socket.socket], data: bytes) -> None:
    made, admin = shared
    with made.connect_from_outside() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while connection.recv(1 << 16):
                pass
    assert code(exchange(admin, "status")) is None


MALFORMED = [
    b"\xc1",
    b"G",
    b"\xc7\x00\x01",
    b"\x90",
    *map(msgpack.packb, ([], {}, [0, 1, "status"], [0, -1, "status", []])),
]


@pytest.mark.parametrize("data", [*MALFORMED, msgpack.packb([0, 1, b"status", []]), msgpack.packb([1, 1, None, 1])])
def test_what_is_malformed_ends_the_connection(shared: tuple[Rescue, socket.socket], data: bytes) -> None:
    made, _ = shared
    with made.connect() as connection:
        connection.sendall(data)
        assert closed(connection)


@pytest.mark.parametrize(("size", "answered"), [(FRAME_MAX - 1, True), (FRAME_MAX, True), (FRAME_MAX + 1, False)])
def test_the_size_of_a_frame_is_bounded(shared: tuple[Rescue, socket.socket], size: int, answered: bool) -> None:
    made, _ = shared
    frame = msgpack.packb([0, 1, "status", [bytes(size - 14)]])
    assert len(frame) == size
    with made.connect() as connection:
        connection.sendall(frame)
        assert closed(connection) is not answered
