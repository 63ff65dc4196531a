"""What a node does when it runs short of memory or disk: it frees what nobody uses, then ends whom it must."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qemu.cluster.pods import image
from qemu.probe import Probe
from tests.cluster.conftest import KUBELET
from tests.cluster.work import container, mount, pod, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qemu.machine import Machine
    from tests.cluster.work import Work

pytestmark = pytest.mark.cluster
NODE = "node-2"
MIB = 1 << 20
FILL = "/var/lib/fill"
NEAR = 8 * MIB  # below the threshold: less than what is to be gained


@pytest.fixture
def summary(work: Work) -> Callable[[], Any]:
    """Ask the kubelet of NODE for what it measured."""
    return lambda: work.api.get(f"/api/v1/nodes/{NODE}/proxy/stats/summary")["node"]


def condition(work: Work, kind: str) -> Any:
    node = work.api.get(f"/api/v1/nodes/{NODE}")
    return next(each for each in node["status"]["conditions"] if each["type"] == kind)


def passed(work: Work, kind: str, before: Any) -> None:
    """Wait until the node is under pressure no longer, which it must have been since `before`."""

    def is_over() -> bool:
        now = condition(work, kind)
        return bool(now["status"] == "False" and now["lastTransitionTime"] > before["lastTransitionTime"])

    work.cluster.control_plane.wait(f"{kind} over", is_over, 120.0)


def test_who_eats_the_node_s_memory_is_evicted(
    work: Work, clients: Mapping[str, str], summary: Callable[[], Any]
) -> None:
    modest = pod("modest", shell("main", "sleep 1d", resources={"requests": {"memory": "20Mi"}}), nodeName=NODE)
    work.apply(modest)
    work.running("modest")
    before, found = condition(work, "MemoryPressure"), summary()
    pods = next(each for each in found["systemContainers"] if each["name"] == "pods")
    available = min(found["memory"]["availableBytes"], pods["memory"]["availableBytes"])
    too_much = available // MIB - int(KUBELET["evictionHard"]["memory.available"].removesuffix("Mi")) + 60
    script = f"dd if=/dev/zero of=/memory/file bs=1M count={too_much}; sleep 1d"
    volume = {"name": "memory", "emptyDir": {"medium": "Memory"}}
    main = shell("main", script, volumeMounts=[mount("memory", "/memory")])
    work.apply(pod("hungry", main, volumes=[volume], nodeName=NODE))
    work.evicted("hungry", "The node was low on resource: memory")
    assert work.get("pods", "modest")["status"]["phase"] == "Running"
    assert work.get("pods", clients[NODE])["status"]["phase"] == "Running"
    passed(work, "MemoryPressure", before)


def test_images_that_nobody_uses_go_when_the_disk_fills(
    work: Work, nodes: Mapping[str, Machine], summary: Callable[[], Any]
) -> None:
    """What asks for no storage may be evicted as well; what counts is that the disk is still as full afterwards."""
    work.apply(pod("uses", container("main", "ballast", "-c", "true", command=["/bin/sh"]), nodeName=NODE))
    work.ended("uses")
    work.kubectl("delete", "pod", "uses")

    def images() -> set[str]:
        listed = work.api.get(f"/api/v1/nodes/{NODE}")["status"]["images"]
        return {name for each in listed for name in each["names"]}

    plane, probe = work.cluster.control_plane, Probe(nodes[NODE])
    plane.wait("the image in the node's status", lambda: image("ballast") in images(), 120.0)
    before = condition(work, "DiskPressure")
    percent = int(KUBELET["evictionHard"]["nodefs.available"].removesuffix("%"))
    threshold = summary()["fs"]["capacityBytes"] * percent // 100
    probe.do("fill", path=FILL, leave=threshold - NEAR)
    try:
        plane.wait("the image's end", lambda: image("ballast") not in images(), 120.0)
        assert image("pods") in images(), "one that is in use"
        passed(work, "DiskPressure", before)
    finally:
        probe.do("remove", path=FILL)
