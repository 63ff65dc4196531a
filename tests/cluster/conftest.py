"""What the tests of a real cluster share: one control plane, and two nodes that joined it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from qemu.probe import PORT
from qemu.probe import manifest as probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qemu.cluster import Cluster
    from qemu.machine import Machine

NAMES = ("node-1", "node-2")
JOIN = 240.0  # seconds for a node to become Ready on a slow, busy host


@pytest.fixture(scope="session")
def nodes(cluster: Cluster) -> Mapping[str, Machine]:
    """Two Ready nodes by name, each with the probe as a static pod; a test leaves both Ready."""
    for name in NAMES:
        config = cluster.config(name, static_pods=[probe()], extra="[containerd]\nmetrics_port = 1338\n")
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


def says(machine: Machine, pattern: str) -> Callable[[], str | None]:
    """What asks the node for its state in the cluster: the reason, once it is like that."""

    def ask() -> str | None:
        cluster = status(machine)["cluster"]
        reason = (cluster and cluster["reason"]) or ""
        return reason if re.search(pattern, reason) else None

    return ask


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a node of their own come first: at most two machines run at once."""
    items.sort(key=lambda item: "nodes" in getattr(item, "fixturenames", ()))
