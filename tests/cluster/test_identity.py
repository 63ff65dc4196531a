"""Whether a node is still itself after a reboot, which makes /var afresh: with INITD-STATE it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qemu.disks import partitioned
from tests.cluster.conftest import JOIN, says, status
from tests.vm.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qemu.cluster import Cluster
    from qemu.machine import Machine

pytestmark = pytest.mark.cluster
SIZE = 64 << 20


def client_requests(cluster: Cluster, token: str) -> list[dict[str, Any]]:
    """What was asked for with a bootstrap token."""
    items = cluster.control_plane.api.get("/apis/certificates.k8s.io/v1/certificatesigningrequests")["items"]
    return [item for item in items if item["spec"]["username"] == f"system:bootstrap:{token.partition('.')[0]}"]


def keys(machine: Machine) -> set[str]:
    with machine.client() as client:
        return {entry["name"] for entry in client.stream("files", "/var/lib/kubelet/pki")}


def kubeconfig_written(machine: Machine) -> float:
    """When the kubelet wrote its kubeconfig, which is on /var: it does so only where there is none."""
    with machine.client() as client:
        (entry,) = client.stream("files", "/var/lib/kubelet/kubeconfig")
        return float(entry["modified"])


def test_a_node_with_a_state_partition_comes_back_with_a_revoked_token(
    cluster: Cluster, lone: Callable[..., Machine], tmp_path: Path
) -> None:
    token = cluster.control_plane.bootstrap_token()
    disk = partitioned(tmp_path / "state.raw", "INITD-STATE", SIZE)
    machine = lone(cluster.config("node-3", token=token), disks=(disk,))
    cluster.wait_ready("node-3", JOIN)
    assert status(machine)["identity"] == "persistent"
    cluster.control_plane.revoke(token)
    (asked,) = client_requests(cluster, token)
    assert asked["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
    assert asked["status"]["conditions"][0]["reason"] == "AutoApproved", "by the controller manager"
    assert asked["status"]["certificate"]
    before, written = keys(machine), kubeconfig_written(machine)
    with machine.next_boot(JOIN), machine.client() as client:
        client.call("reboot")
    until("Ready by its own word", lambda: status(machine)["ready"], JOIN)
    assert cluster.ready("node-3")
    assert client_requests(cluster, token) == [asked], "it did not have to join again"
    assert before <= keys(machine)
    assert kubeconfig_written(machine) > written, "/var was made afresh"


def test_a_node_without_one_says_that_it_cannot(cluster: Cluster, lone: Callable[..., Machine]) -> None:
    token = cluster.control_plane.bootstrap_token()
    machine = lone(cluster.config("node-3", token=token))
    cluster.wait_ready("node-3", JOIN)
    assert status(machine)["identity"].startswith("ephemeral")
    cluster.control_plane.revoke(token)
    with machine.next_boot(JOIN), machine.client() as client:
        client.call("reboot")
    until("a reason", says(machine, r"token refused \(401\)"), JOIN)
    assert not status(machine)["ready"]
