"""What the tests of a real cluster share: one control plane, and two nodes that joined it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qemu.probe import PORT
from qemu.probe import manifest as probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qemu.cluster import Cluster
    from qemu.machine import Machine

NAMES = ("node-1", "node-2")


@pytest.fixture(scope="session")
def nodes(cluster: Cluster) -> Mapping[str, Machine]:
    """Two Ready nodes by name, each with the probe as a static pod; a test leaves both Ready."""
    for name in NAMES:
        config = cluster.config(name, static_pods=[probe()], extra="[containerd]\nmetrics_port = 1338\n")
        cluster.machine(name, config, forward=(PORT,)).start()
    for name in NAMES:
        cluster.wait_ready(name)
    return cluster.machines


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a node of their own come first: at most two machines run at once."""
    items.sort(key=lambda item: "nodes" in getattr(item, "fixturenames", ()))
