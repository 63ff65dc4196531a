"""The bridge between clients and a guest that a test plays: what one of them does must not hurt another."""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from initd.api.protocol import (
    HELLO_REQUEST,
    ApiError,
    Code,
    Decoder,
    Limits,
    Marker,
    Message,
    Notification,
    Request,
    Response,
    encode,
)
from initd.client.connection import Client
from qemu import bridge as bridge_module
from qemu.bridge import Bridge
from qemu.errors import MachineStoppedError, MachineTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT = 5.0


class Guest:
    """PID 1's end of the line. boot() plays a new PID 1: it discards until a hello and answers it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(WAIT)
        self._decoder = Decoder()
        self._messages: deque[Message] = deque()

    def boot(self, boot_id: str = "one", noise: bytes = b"") -> None:
        marker = Marker(HELLO_REQUEST)
        while (found := marker.feed(self.socket.recv(65536))) is None:
            pass
        self._decoder, self._messages = Decoder(Limits(message=1 << 16)), deque()
        self._messages += self._decoder.feed(found)
        self.socket.sendall(noise)
        self.answer_hello(boot_id)

    def answer_hello(self, boot_id: str) -> None:
        hello = self.receive()
        assert isinstance(hello, Request)
        version = {"version": "1", "kernel": "6", "python": "3", "boot_id": boot_id, "image": None}
        self.send(Response(0, None, [*hello.params, version]))

    def receive(self) -> Message:
        """Return the next message, hellos that were sent twice left out."""
        while True:
            while not self._messages:
                data = self.socket.recv(65536)
                assert data, "the bridge closed the line"
                self._messages += self._decoder.feed(data)
            return self._messages.popleft()

    def request(self, method: str) -> Request:
        message = self.receive()
        assert isinstance(message, Request)
        assert message.method == method
        return message

    def send(self, message: Message) -> None:
        self.socket.sendall(encode(message))


class Peer:
    """A client of which a test sees every frame."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT)
        self.socket.connect(str(path))
        self._decoder = Decoder()
        self._messages: deque[Message] = deque()

    def send(self, message: Message) -> None:
        self.socket.sendall(encode(message))

    def receive(self) -> Message:
        while not self._messages:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._messages += self._decoder.feed(data)
        return self._messages.popleft()

    def read_all(self) -> None:
        while True:
            self.receive()

    def close(self) -> None:
        self.socket.close()


class World:
    """A bridge, its guest and its clients."""

    def __init__(self, folder: Path, observer: Any = None) -> None:
        near, far = socket.socketpair()
        self.path = folder / "api.sock"
        self.guest = Guest(far)
        self.bridge = Bridge(near, self.path, observer)
        self.bridge.start()
        self.peers: list[Peer] = []

    def peer(self) -> Peer:
        self.peers.append(Peer(self.path))
        return self.peers[-1]

    def close(self) -> None:
        self.bridge.close()
        self.guest.socket.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def booted(world: World) -> World:
    world.guest.boot()
    world.bridge.wait(WAIT)
    return world


def test_two_clients_with_the_same_msgid_get_their_own_answers(booted: World) -> None:
    first, second = booted.peer(), booted.peer()
    first.send(Request(1, "a", ["x"]))
    a = booted.guest.request("a")
    second.send(Request(1, "b", []))
    b = booted.guest.request("b")
    assert a.params == ["x"]
    booted.guest.send(Response(b.msgid, None, "for second"))
    booted.guest.send(Notification("stream", [a.msgid, "item"]))
    booted.guest.send(Response(a.msgid, ["NOT_FOUND", "no"], None))
    assert second.receive() == Response(1, None, "for second")
    assert first.receive() == Notification("stream", [1, "item"])
    assert first.receive() == Response(1, ["NOT_FOUND", "no"], None)


def test_before_the_node_answers_a_call_is_refused_at_once(world: World) -> None:
    with Client(str(world.path)) as client, pytest.raises(ApiError, match="does not answer") as caught:
        client.call("status")
    assert caught.value.code is Code.UNAVAILABLE
    with pytest.raises(MachineTimeoutError):
        world.bridge.wait(0.01)


def test_noise_and_half_a_frame_before_the_hello_are_discarded(world: World) -> None:
    world.guest.boot(noise=b"[    0.0] Linux\x94\x01\x00\xc0\x92\xd9\x20" + encode(Request(1, "old", ["x" * 50]))[:20])
    assert world.bridge.wait(WAIT)["boot_id"] == "one"


def test_a_hello_that_got_lost_is_sent_again(world: World) -> None:
    assert world.guest.socket.recv(65536).startswith(HELLO_REQUEST)  # by a PID 1 that died before it answered
    world.guest.boot()
    assert world.bridge.wait(WAIT)["boot_id"] == "one"


def test_calls_end_when_pid_1_is_replaced_and_the_client_stays_connected(booted: World) -> None:
    peer = booted.peer()
    peer.send(Request(1, "events", []))
    booted.guest.request("events")
    booted.guest.socket.sendall(b"\x94\x01")  # half a frame
    booted.bridge.lost()
    ended = peer.receive()
    assert isinstance(ended, Response)
    assert ended.msgid == 1
    assert ApiError.from_wire(ended.error).code is Code.UNAVAILABLE
    booted.guest.boot("two")
    assert booted.bridge.wait(WAIT)["boot_id"] == "two"
    peer.send(Request(1, "version", []))
    booted.guest.send(Response(booted.guest.request("version").msgid, None, "v"))
    assert peer.receive() == Response(1, None, "v")


def test_a_guest_that_talks_nonsense_is_asked_anew(booted: World) -> None:
    peer = booted.peer()
    peer.send(Request(1, "a", []))
    booted.guest.request("a")
    booted.guest.socket.sendall(b"\xc1")
    assert isinstance(peer.receive(), Response)
    booted.guest.boot("two")
    assert booted.bridge.wait(WAIT)["boot_id"] == "two"


def test_verify_wants_the_echo_of_a_fresh_nonce(booted: World) -> None:
    with pytest.raises(MachineTimeoutError):
        booted.bridge.verify(0.05)
    booted.guest.boot("one")
    assert booted.bridge.wait(WAIT)["boot_id"] == "one"


def test_a_vanished_client_has_its_calls_cancelled(booted: World) -> None:
    peer = booted.peer()
    peer.send(Request(1, "events", []))
    number = booted.guest.request("events").msgid
    peer.close()
    assert booted.guest.receive() == Notification("cancel", [number])


def test_a_client_that_does_not_read_is_cut_off_and_the_others_are_not(
    booted: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_module, "CLIENT_BUFFER", 1 << 16)
    slow, other = booted.peer(), booted.peer()
    slow.send(Request(1, "logs", []))
    number = booted.guest.request("logs").msgid
    for _ in range(60):  # far more than the sockets' own buffers
        booted.guest.send(Notification("stream", [number, "x" * 30000]))
    other.send(Request(1, "version", []))
    cancelled = booted.guest.receive()
    asked = booted.guest.receive()
    if isinstance(cancelled, Request):  # the two may come in either order
        cancelled, asked = asked, cancelled
    assert cancelled == Notification("cancel", [number])
    assert isinstance(asked, Request)
    booted.guest.send(Response(asked.msgid, None, "v"))
    assert other.receive() == Response(1, None, "v")
    with pytest.raises((EOFError, ConnectionError)):
        slow.read_all()


@pytest.mark.parametrize(
    "bad",
    [b"\xc1", encode(Request(1, "a", ["x" * (1 << 16)])), encode(Request(9, "a", [])) * 2],
    ids=["no frame", "larger than the node takes", "a msgid twice"],
)
def test_a_malformed_frame_closes_that_connection_only(booted: World, bad: bytes) -> None:
    rude, other = booted.peer(), booted.peer()
    rude.socket.sendall(bad)
    told = rude.receive()
    assert isinstance(told, Response)
    assert told.msgid == 0
    assert ApiError.from_wire(told.error).code is Code.INVALID_ARGUMENT
    with pytest.raises((EOFError, ConnectionError)):
        rude.receive()
    other.send(Request(1, "version", []))
    while not isinstance(message := booted.guest.receive(), Request) or message.method != "version":
        pass
    booted.guest.send(Response(message.msgid, None, "v"))
    assert other.receive() == Response(1, None, "v")


def test_large_frames_of_many_clients_arrive_whole_at_a_guest_that_reads_late(booted: World) -> None:
    peers = [booted.peer() for _ in range(8)]
    for number, peer in enumerate(peers):
        peer.socket.setblocking(False)
        for msgid in range(3):
            peer.send(Request(msgid, "big", [str(number) * 20000]))
    texts = [str(booted.guest.request("big").params[0]) for _ in range(24)]
    assert sorted(texts) == sorted(str(number) * 20000 for number in range(8) for _ in range(3))


def test_a_port_that_was_opened_anew_behind_our_back_is_noticed(booted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "_PROBE_TIMEOUT", 0.05)
    peer = booted.peer()
    peer.send(Request(1, "a", []))
    booted.bridge.opened()  # and the new PID 1 discards the probe, for it waits for a hello
    booted.guest.boot("two")
    assert isinstance(peer.receive(), Response)
    assert booted.bridge.wait(WAIT)["boot_id"] == "two"


def test_a_node_that_answers_the_probe_keeps_its_calls(booted: World) -> None:
    peer = booted.peer()
    peer.send(Request(1, "a", []))
    number = booted.guest.request("a").msgid
    booted.bridge.opened()
    booted.guest.send(Response(booted.guest.request("version").msgid, None, {}))
    booted.guest.send(Response(number, None, "still"))
    assert peer.receive() == Response(1, None, "still")


def test_a_session_that_ended_in_silence_is_noticed(booted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "_SILENCE", 0.05)
    monkeypatch.setattr(bridge_module, "_PROBE_TIMEOUT", 0.05)
    peer = booted.peer()
    peer.send(Request(1, "a", []))
    assert isinstance(peer.receive(), Response)
    booted.guest.boot("one")
    booted.bridge.wait(WAIT)


def test_waiting_ends_with_the_machine(world: World) -> None:
    world.guest.socket.close()
    with pytest.raises(MachineStoppedError):
        world.bridge.wait(WAIT)
    with pytest.raises(MachineStoppedError):
        world.bridge.verify(WAIT)


class Events:
    """An observer as the journal is one."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.two = threading.Event()

    def answered(self, version: Any) -> int:
        return self.seen[-1] if version["boot_id"] == "one" and self.seen else 0

    def event(self, event: dict[str, Any]) -> None:
        self.seen.append(event["seq"])
        if event["seq"] == 2:
            self.two.set()


def test_events_are_followed_and_followed_on_where_they_broke_off(tmp_path: Path) -> None:
    events = Events()
    world = World(tmp_path, events)
    try:
        world.guest.boot()
        first = world.guest.request("events")
        assert first.params == [0, True]
        for seq in (1, 2):
            world.guest.send(Notification("stream", [first.msgid, {"seq": seq}]))
        assert events.two.wait(WAIT)
        world.bridge.lost()
        world.guest.boot()
        assert world.guest.request("events").params == [2, True]
        world.bridge.lost()
        world.guest.boot("two")
        assert world.guest.request("events").params == [0, True]
        assert events.seen == [1, 2]
    finally:
        world.close()
