"""How a node joins, and what becomes of it when something is in the way: each ends right, says why not until then, and
takes no reboot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import socketserver
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from qemu.cluster import Cluster, egress
from qemu.cluster.controlplane import HOST, LOOPBACK
from qemu.cluster.pki import Authority
from tests.cluster.conftest import JOIN, heartbeat, says, status
from tests.namespace import sntp_server
from tests.vm.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qemu.cluster.controlplane import ControlPlane
    from qemu.machine import Machine

pytestmark = pytest.mark.cluster
AWAY = 150.0  # seconds without an API server: longer than the controller manager's patience with a node


def test_an_api_server_that_is_away_at_boot_and_later(cluster: Cluster, lone: Callable[..., Machine]) -> None:
    plane = cluster.control_plane
    config = cluster.config(
        "node-3",
        cluster={"labels": {"topology.kubernetes.io/zone": "attic"}},
        registerWithTaints=[{"key": "example.com/new", "value": "yes", "effect": "PreferNoSchedule"}],
        providerID="initd://attic/node-3",
    )
    plane.end("kube-apiserver")
    try:
        machine = lone(config)
        reason = until("a reason", says(machine, "unreachable: Connection refused"), JOIN)
        assert f"API server https://10.0.2.2:{plane.port}" in reason
        assert any(reason in line for line in status(machine)["reasons"])
        boot_id = machine.verify()["boot_id"]
    finally:
        plane.start_api()
    cluster.wait_ready("node-3", JOIN)
    until("ready by the node's own word", lambda: status(machine)["ready"], JOIN)
    node = plane.api.get("/api/v1/nodes/node-3")
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "attic"
    assert {"key": "example.com/new", "value": "yes", "effect": "PreferNoSchedule"} in node["spec"]["taints"]
    assert node["spec"]["providerID"] == "initd://attic/node-3"
    assert {"type": "InternalIP", "address": cluster.address("node-3")} in node["status"]["addresses"]
    assert {"type": "Hostname", "address": "node-3"} in node["status"]["addresses"]

    def states() -> list[str]:
        with machine.client() as client:
            return [container["state"] for pod in client.call("pods", timeout=60.0) for container in pod["containers"]]

    until("its pods", lambda: states() == ["running", "running"], JOIN)
    plane.end("kube-apiserver")
    try:
        begun = time.monotonic()
        until("a reason", says(machine, "unreachable: Connection refused"), JOIN)
        until("time without an API server", lambda: time.monotonic() > begun + AWAY, AWAY + 10)
        assert states() == ["running", "running"], "pods go on"
    finally:
        plane.start_api()
    before = heartbeat(cluster, "node-3")
    until("a heartbeat", lambda: heartbeat(cluster, "node-3") != before, JOIN)
    cluster.wait_ready("node-3", JOIN)
    until("ready again by the node's own word", lambda: status(machine)["ready"], JOIN)
    assert machine.verify()["boot_id"] == boot_id


def test_what_the_node_keeps_back_and_how_it_is_set_up(cluster: Cluster, lone: Callable[..., Machine]) -> None:
    """Swap off, reservations as configured, and defaults where they are not."""
    lone(cluster.config("node-3", kubeReserved={"memory": "333Mi"}))
    cluster.wait_ready("node-3", JOIN)
    plane = cluster.control_plane
    configz = plane.api.get("/api/v1/nodes/node-3/proxy/configz")["kubeletconfig"]
    assert configz["failSwapOn"] is True
    assert configz["kubeReserved"]["memory"] == "333Mi"
    status_ = plane.api.get("/api/v1/nodes/node-3")["status"]
    capacity, allocatable = (_mebibytes(status_[key]["memory"]) for key in ("capacity", "allocatable"))
    kept = _mebibytes(configz["systemReserved"]["memory"]) + 333 + 100  # eviction's threshold
    assert capacity - allocatable == pytest.approx(kept, abs=1)


@contextlib.contextmanager
def impostor(plane: ControlPlane, folder: Path) -> Iterator[tuple[int, threading.Event]]:
    """A port of the host with a certificate of another authority; the API server itself once the event is set."""
    Authority(folder).issue("impostor", "kube-apiserver", hosts=[HOST])
    context, gone = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), threading.Event()
    context.load_cert_chain(folder / "impostor.crt", folder / "impostor.key")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if gone.is_set():
                with socket.create_connection((LOOPBACK, plane.port)) as server:
                    egress.splice(self.request, server)
            else:
                with contextlib.suppress(OSError):  # a client that knows better ends the handshake
                    context.wrap_socket(self.request, server_side=True).close()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], gone
        server.shutdown()


def test_a_wrong_authority_is_named_and_the_node_joins_once_it_is_right(
    cluster: Cluster, lone: Callable[..., Machine], tmp_path: Path
) -> None:
    plane = cluster.control_plane
    with impostor(plane, tmp_path) as (port, gone):
        kubeconfig = plane.bootstrap_kubeconfig(plane.bootstrap_token(), f"https://{HOST}:{port}")
        machine = lone(cluster.config("node-3", kubeconfig=kubeconfig))
        boot_id = machine.verify()["boot_id"]
        until("a reason", says(machine, "certificate verify failed"), JOIN)
        assert not status(machine)["ready"]
        gone.set()
        cluster.wait_ready("node-3", JOIN)
        until("ready by the node's own word", lambda: status(machine)["ready"], JOIN)
        assert machine.verify()["boot_id"] == boot_id


def test_a_wrong_clock_and_then_an_expired_token(cluster: Cluster, lone: Callable[..., Machine]) -> None:
    plane = cluster.control_plane
    token = plane.bootstrap_token(1.0)  # over long before the node is up
    config = cluster.config("node-3", token=token).replace("network = {", 'network = {ntp = ["10.0.2.2"], ', 1)
    machine = lone(config, qemu_arguments=("-rtc", "base=2001-01-01T00:00:00"))
    boot_id = machine.verify()["boot_id"]
    reason = until("a reason", says(machine, "certificate verify failed"), JOIN)
    assert "2001-01-01" in reason, "the node's time explains it"
    with sntp_server.on_loopback():
        until("the next reason", says(machine, r"token refused \(401\)"), JOIN)
    assert "10.0.2.2" in status(machine)["time"]
    plane.restore(token)
    cluster.wait_ready("node-3", JOIN)
    assert machine.verify()["boot_id"] == boot_id


def _mebibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi)?", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Ki": 1 / 1024, "Mi": 1.0, None: 1 / (1 << 20)}[unit]


def test_certificates_are_rotated_before_they_end(image: Any) -> None:
    """A cluster whose certificates live for three minutes: both of the kubelet's are renewed, and it stays Ready."""
    with Cluster(f"short-{os.getpid()}", image, certificate_seconds=180) as cluster:
        machine = cluster.machine("node-1")
        machine.start()
        cluster.wait_ready("node-1", JOIN)

        def kinds() -> dict[str, int]:
            with machine.client() as client:
                names = [entry["name"] for entry in client.stream("files", "/var/lib/kubelet/pki")]
            return {
                kind: sum(bool(re.match(rf"kubelet-{kind}-\d", name)) for name in names)
                for kind in ("client", "server")
            }

        before = until("both certificates", lambda: (found := kinds()) and min(found.values()) and found, JOIN)
        begun = time.monotonic()
        until("new ones of both", lambda: all(kinds()[kind] > before[kind] for kind in before), 180)
        until("the first ones' end", lambda: time.monotonic() > begun + 190, 200)
        last = heartbeat(cluster, "node-1")
        until("a heartbeat", lambda: heartbeat(cluster, "node-1") != last, 60)
        assert cluster.ready("node-1")
        assert json.loads(cluster.kubectl("get", "--raw", "/api/v1/nodes/node-1/proxy/configz"))
