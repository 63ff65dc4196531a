"""The client: calls and streams side by side, and errors that say what to do."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from initd.api.protocol import ApiError, Code, Request, Response, encode
from initd.api.registry import Role
from initd.client.connection import Client, parse
from qemu import vms
from tests.unit.client_support import EVENTS, STATUS, FakeNode, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with serving(tmp_path) as fake:
        yield fake


def test_a_call_returns_the_result_or_raises_the_node_s_error(node: FakeNode) -> None:
    with Client(f"unix://{node.path}") as client:
        assert client.call("status") == STATUS
        with pytest.raises(ApiError, match="no service named 'x'") as caught:
            client.call("service.restart", "x")
        assert caught.value.code is Code.NOT_FOUND


def test_a_stream_yields_items_while_other_calls_are_made(node: FakeNode) -> None:
    with Client(node.path) as client:
        seen = []
        for event in client.stream("events", 0, False):
            assert client.call("status") == STATUS
            seen.append(event)
        assert seen == EVENTS


def test_two_streams_at_once_do_not_mix(node: FakeNode) -> None:
    with Client(node.path) as client:
        pairs = list(zip(client.stream("events", 0, False), client.stream("events", 1, False), strict=False))
    assert pairs == list(itertools.pairwise(EVENTS))


def test_an_idle_stream_gives_the_caller_a_turn_and_can_be_given_up(node: FakeNode) -> None:
    with Client(node.path) as client:
        stream = client.stream("events", len(EVENTS), True, idle=0.01)
        assert next(stream) is None
        stream.close()
        assert client.call("status") == STATUS


def test_a_call_without_an_answer_ends_at_its_deadline_and_the_connection_goes_on(node: FakeNode) -> None:
    with Client(node.path) as client:
        with pytest.raises(ApiError, match=r"never: no answer in 0\.01 s") as caught:
            client.call("never", timeout=0.01)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert client.call("status") == STATUS


def test_a_node_that_goes_away_is_an_error_that_names_it(node: FakeNode) -> None:
    with Client(node.path) as client:
        client.call("status")
        node.stop()
        with pytest.raises(ConnectionError, match=node.path):
            list(client.stream("events"))


def test_one_connection_too_many_says_so_to_the_one_that_was_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("initd.api.start.MAX_CONNECTIONS_OF_ONE", 1)
    with serving(tmp_path, Role.READER) as node, Client(node.path) as first:
        first.call("status")
        with Client(node.path) as second:
            second.call("status")
            with pytest.raises(ConnectionError, match=r"takes the place of this one|Broken pipe|reset"):
                first.call("status")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\xc1", id="garbage"),
        pytest.param(b"", id="nothing"),
        pytest.param(encode(Response(0, ["INTERNAL", "x"], None)), id="an error for no call"),
    ],
)
def test_a_server_that_talks_nonsense_is_a_connection_error(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "odd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(path) as client, pytest.raises(ConnectionError, match=path):
            client.call("status")
        thread.join()


def test_answers_that_nobody_waits_for_are_ignored(tmp_path: Path) -> None:
    path = str(tmp_path / "odd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(
                    encode(Response(77, None, "late")) + encode(Request(1, "call", [])) + encode(Response(1, None, 5))
                )

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(path) as client:
            assert client.call("status") == 5
        thread.join()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/run/x.sock", (socket.AF_UNIX, "/run/x.sock")),
        ("x.sock", (socket.AF_UNIX, "x.sock")),
        ("unix:///run/x.sock", (socket.AF_UNIX, "/run/x.sock")),
        ("vsock://3", (socket.AF_VSOCK, (3, 1024))),
        ("vsock://3:99", (socket.AF_VSOCK, (3, 99))),
    ],
)
def test_addresses(address: str, expected: object) -> None:
    assert parse(address) == expected


@pytest.mark.parametrize("address", ["tcp://1.2.3.4", "unix://relative", "vsock://", "vsock://x", "vsock://3:x"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match=f"found '{address}', expected"):
        Client(address)


def test_where_nothing_listens_the_error_says_why(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with pytest.raises(ConnectionError, match="no such socket"):
        Client(str(path))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(ConnectionError, match="nothing listens there any more"):
        Client(str(path))


def make_vm(folder: Path, name: str, text: str) -> None:
    (folder / "initd" / "vms" / name).mkdir(parents=True)
    (folder / "initd" / "vms" / name / "machine.json").write_text(text)


def test_running_vms_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert vms.running() == []
    with pytest.raises(LookupError, match=r"no VM named default; running: none \(make boot"):
        vms.resolve("default")
    alive = {"name": "default", "pid": os.getpid(), "started": 5.0}
    make_vm(tmp_path, "default", json.dumps(alive))
    make_vm(tmp_path, "dead", json.dumps({**alive, "name": "dead", "pid": 2**22 + 1}))
    make_vm(tmp_path, "half", '{"name": "ha')
    make_vm(tmp_path, "odd", "[1, 2]")
    make_vm(tmp_path, "huge", '{"name": "huge", "pid": 1e999, "started": 0}')
    assert [machine["name"] for machine in vms.running()] == ["default"]
    assert vms.resolve("default") == str(tmp_path / "initd/vms/default/api.sock")
    with pytest.raises(LookupError, match="no VM named half; running: default"):
        vms.resolve("half")
    with pytest.raises(ValueError, match=r"found VM name '\.\./default', expected"):
        vms.resolve("../default")
