"""What the tests of a real cluster share: one control plane, and two nodes that joined it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from qemu.probe import PORT
from qemu.probe import manifest as probe
from tests.cluster.work import ECHO, NAMESPACE, Work, controller, shell, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qemu.cluster import Cluster
    from qemu.machine import Machine

NAMES = ("node-1", "node-2")
JOIN = 240.0  # seconds for a node to become Ready on a slow, busy host
# The kubelet looks at what changed, and at what is short, more often than by default: nobody waits minutes for a test.
KUBELET: dict[str, Any] = {
    "syncFrequency": "10s",
    "evictionHard": {
        "memory.available": "300Mi",
        "nodefs.available": "40%",
        "imagefs.available": "40%",
        "nodefs.inodesFree": "5%",
    },
    "evictionPressureTransitionPeriod": "15s",  # longer than between two reports of the node's conditions
    "imageMinimumGCAge": "1s",
}


@pytest.fixture(scope="session")
def nodes(cluster: Cluster) -> Mapping[str, Machine]:
    """Two Ready nodes by name, each with the probe as a static pod; a test leaves both Ready."""
    for name in NAMES:
        config = cluster.config(name, static_pods=[probe()], extra="[containerd]\nmetrics_port = 1338\n", **KUBELET)
        cluster.machine(name, config, forward=(PORT,)).start()
    for name in NAMES:
        cluster.wait_ready(name)
    return cluster.machines


@pytest.fixture
def lone(cluster: Cluster) -> Iterator[Callable[..., Machine]]:
    """Start node-3, a node of the test's own; gone afterwards, from the cluster too."""
    made: list[Machine] = []

    def start(config: str, **options: Any) -> Machine:
        made.append(cluster.machine("node-3", config, **options))
        made[0].start()
        made[0].wait_api()
        return made[0]

    yield start
    for machine in made:
        machine.kill()
        del cluster.machines["node-3"]
    cluster.kubectl("delete", "node", "node-3", "--ignore-not-found")


def status(machine: Machine) -> dict[str, Any]:
    with machine.client() as client:
        found: dict[str, Any] = client.call("status")
        return found


def heartbeat(cluster: Cluster, name: str) -> str:
    """When the kubelet of a node last renewed its Lease, which it does every 10 s."""
    lease = cluster.control_plane.api.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}")
    renewed: str = lease["spec"]["renewTime"]
    return renewed


def says(machine: Machine, pattern: str) -> Callable[[], str | None]:
    """What asks the node for its state in the cluster: the reason, once it is like that."""

    def ask() -> str | None:
        cluster = status(machine)["cluster"]
        reason = (cluster and cluster["reason"]) or ""
        return reason if re.search(pattern, reason) else None

    return ask


@pytest.fixture(scope="session")
def network(cluster: Cluster, nodes: Mapping[str, Machine]) -> Cluster:
    """The cluster, once its network is there on every node, with a namespace for the tests' objects."""
    plane = cluster.control_plane

    def everywhere() -> bool:
        daemons = plane.api.get("/apis/apps/v1/namespaces/kube-system/daemonsets")["items"]
        return len(daemons) == 2 and all(each["status"].get("numberReady") == len(nodes) for each in daemons)

    plane.wait("the pods of the cluster's network", everywhere, 120.0)
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    plane.wait("the namespace's service account", lambda: plane.api.get(account), 30.0)
    return cluster


@pytest.fixture
def work(network: Cluster) -> Iterator[Work]:
    """What a test gives the cluster to do; gone after it."""
    made = Work(network)
    yield made
    made.clean()


@pytest.fixture(scope="session")
def clients(network: Cluster) -> Mapping[str, str]:
    """A pod with a shell on each node, by the node; GET /cgi-bin/who of ECHO says who asks."""
    work = Work(network)
    answer = r"#!/bin/sh\necho; echo $REMOTE_ADDR\n"
    make = f"mkdir -p /www/cgi-bin; printf '{answer}' > /www/cgi-bin/who; chmod +x /www/cgi-bin/who"
    # It asks for what it uses, so that it is not among the first that go when memory is short.
    kept = {"requests": {"memory": "20Mi"}}
    main = shell("main", f"{make}; exec httpd -f -p 0.0.0.0:{ECHO} -h /www", resources=kept)
    work.apply(controller("DaemonSet", "client", spec(main)))

    def everywhere(found: Any) -> bool:
        wanted = found["status"].get("desiredNumberScheduled", 0)
        return bool(0 < wanted == found["status"].get("numberReady"))

    work.until("daemonsets", "client", "ready", everywhere)
    return {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in work.pods("client")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a node of their own come first: at most two machines run at once. Short supplies come last."""
    items.sort(key=lambda item: [name in getattr(item, "fixturenames", ()) for name in ("nodes", "summary")])
