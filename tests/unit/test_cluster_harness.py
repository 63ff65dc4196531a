"""The harness' cluster, without one: names and addresses, configuration, certificates, the way to the kubelets."""

from __future__ import annotations

import socket
import ssl
import threading
import tomllib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu.cluster import Cluster
from qemu.cluster.api import StatusError
from qemu.cluster.controlplane import ControlPlane
from qemu.cluster.egress import Proxy
from qemu.cluster.pki import Authority
from qemu.errors import HarnessError, MachineStoppedError
from qemu.machine import Machine
from qemu.net import Segment
from qemu.toml import toml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT = 10.0


def test_a_nodes_number_is_its_address_and_its_card() -> None:
    assert Cluster.address("node-1") == "10.100.0.11"
    assert Cluster.address("other-12") == "10.100.0.22"
    arguments = Segment(40000, 11).arguments(1)
    assert arguments[1] == "socket,id=net1,mcast=230.0.0.1:40000,localaddr=127.0.0.1"
    assert "mac=52:54:00:12:35:0b" in arguments[3]


@pytest.mark.parametrize("name", ["node", "node-0", "node-x", "node-201"])
def test_a_name_without_a_number_is_refused(name: str) -> None:
    with pytest.raises(HarnessError, match="expected one that ends in a number"):
        Cluster.address(name)


def test_a_nodes_configuration_is_toml_that_joins_it() -> None:
    cluster = Cluster("unit")
    plane: Any = SimpleNamespace(bootstrap_token=lambda: "aa.bb", bootstrap_kubeconfig=lambda token: f"token {token}")
    registry: Any = SimpleNamespace(port=5000)
    cluster.control_plane, cluster.registry = plane, registry
    made = tomllib.loads(cluster.config("node-2", extra="[watchdog]\nseconds = 0\n", maxPods=20))
    assert made["cluster"] == {"bootstrap_kubeconfig": "token aa.bb"}
    assert made["node"] == {"name": "node-2", "address": "10.100.0.12"}
    assert made["network"]["interfaces"][1] == {"name": "eth1", "addresses": ["10.100.0.12/24"]}
    assert made["kubelet"]["config"] == {"maxPods": 20}
    assert made["watchdog"] == {"seconds": 0}


def test_a_node_whose_machine_is_off_is_not_waited_for(tmp_path: Path) -> None:
    cluster = Cluster("unit")
    cluster.control_plane = ControlPlane(tmp_path, tmp_path, tmp_path / "uds", cluster._dial)
    off: Any = SimpleNamespace(name="unit-node-1", running=False, console_tail=lambda: "Kernel panic")
    cluster.machines["node-1"] = off
    with pytest.raises(MachineStoppedError, match="machine unit-node-1 is off") as caught:
        cluster.wait_ready("node-1")
    assert "Kernel panic" in str(caught.value)


def test_a_machine_that_is_about_to_start_is_no_way_to_a_kubelet() -> None:
    cluster = Cluster("unit")
    cluster.machines["node-1"] = machine = Machine("unit-node-1")
    with pytest.raises(OSError, match=r"no node at 10\.100\.0\.11 is running"):
        cluster._dial("10.100.0.11", 10250)
    process: Any = SimpleNamespace(pid=1, status=None)
    machine._process = process
    with pytest.raises(OSError, match="machine unit-node-1 is not started"):
        cluster._dial("10.100.0.11", 10250)


plain = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(blacklist_categories=["Cs"])),
    lambda children: (
        st.lists(children) | st.dictionaries(st.text(st.characters(blacklist_categories=["Cs"])), children)
    ),
    max_leaves=20,
)


@given(plain)
def test_what_is_written_as_toml_is_read_back(value: object) -> None:
    assert tomllib.loads(f"value = {toml(value)}")["value"] == value


def test_toml_has_no_null() -> None:
    with pytest.raises(TypeError, match="NoneType has no form"):
        toml({"a": None})


def test_an_answer_that_is_no_status_is_an_error_all_the_same() -> None:
    assert str(StatusError("GET", "/x", 404, b'{"message": "gone", "reason": "NotFound"}')) == "GET /x: 404 gone"
    assert str(StatusError("GET", "/x", 502, b"[1]")) == "GET /x: 502 [1]"
    assert str(StatusError("GET", "/x", 502, b"<html>")) == "GET /x: 502 <html>"


def test_certificates_serve_and_are_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue("server", "kube-apiserver", hosts=["127.0.0.1", "kubernetes"])
    authority.issue("user", "someone", ["system:masters"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    server.load_verify_locations(authority.certificate)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=authority.certificate)
    client.load_cert_chain(tmp_path / "user.crt", tmp_path / "user.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    peer = far.getpeercert()
    assert peer is not None
    assert (("organizationName", "system:masters"),) in peer["subject"]
    assert (tmp_path / "user.key").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def kubelet() -> Iterator[socket.socket]:
    """What stands for a kubelet, listening."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        yield server


def ask(path: Path, head: bytes) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(TIMEOUT)
    client.connect(str(path))
    client.sendall(head)
    return client


def test_the_proxy_connects_a_tunnel_both_ways(tmp_path: Path, kubelet: socket.socket) -> None:
    asked = []

    def dial(host: str, port: int) -> socket.socket:
        asked.append((host, port))
        return socket.create_connection(kubelet.getsockname(), timeout=TIMEOUT)

    def serve() -> None:
        connection, _ = kubelet.accept()
        with connection:
            connection.sendall(b"you said " + connection.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    proxy = Proxy(tmp_path / "proxy", dial)
    with ask(tmp_path / "proxy", b"CONNECT 10.100.0.11:10250 HTTP/1.1\r\nHost: x\r\n\r\nhello") as client:
        data = b""
        while part := client.recv(4096):
            data += part
    proxy.close()
    assert data == b"HTTP/1.1 200 OK\r\n\r\nyou said hello"
    assert asked == [("10.100.0.11", 10250)]


def test_a_tunnel_may_be_quiet_for_longer_than_connecting_may_take(tmp_path: Path) -> None:
    node, kubelet = socket.socketpair()
    node.settimeout(0.01)
    proxy = Proxy(tmp_path / "proxy", lambda _host, _port: node)
    with ask(tmp_path / "proxy", b"CONNECT 10.100.0.11:10250 HTTP/1.1\r\n\r\nfirst") as client, kubelet:
        assert kubelet.recv(100) == b"first"
        kubelet.settimeout(0.1)
        with pytest.raises(TimeoutError):
            kubelet.recv(100)  # for longer than the tunnel's other end may take to connect
        kubelet.sendall(b"at last")
        data = b""
        while not data.endswith(b"at last"):
            data += client.recv(100)
    proxy.close()


def test_the_proxy_says_why_it_cannot_connect(tmp_path: Path) -> None:
    def dial(_host: str, _port: int) -> socket.socket:
        raise OSError("no node there")

    proxy = Proxy(tmp_path / "proxy", dial)
    with ask(tmp_path / "proxy", b"CONNECT 10.244.1.2:80 HTTP/1.1\r\n\r\n") as client:
        answer = client.recv(4096)
    proxy.close()
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert answer.endswith(b"10.244.1.2:80: no node there")
