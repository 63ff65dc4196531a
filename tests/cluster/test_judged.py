"""What others judge a node by: the CIS benchmark, its metrics, and what the kubelet's summary knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from rootfs import golang
from rootfs.cache import Cache
from rootfs.progress import Progress
from tests.cluster import cis
from tests.cluster.work import container, pod
from tests.vm.conftest import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qemu.cluster import Cluster
    from qemu.machine import Machine
    from tests.cluster.work import Work

CHECKS = "cfg/cis-1.10/node.yaml"
FILES = {
    "$kubeletconf": "/run/initd/kubelet/config.yaml",
    "$kubeletkubeconfig": "/var/lib/kubelet/kubeconfig",
    "$kubeletcafile": "/run/initd/kubelet/ca.crt",
}
# Every check that does not pass, and why that is right here. One that passes must not stand here.
WAIVERS = {
    "4.1.1": "there is no unit file: initd starts the kubelet from a table in its read-only image",
    "4.1.3": "kube-proxy is a pod with a service account; there is no kubeconfig of its own on the node",
    "4.1.4": "as 4.1.3",
    "4.2.6": "there is no iptables on the node; kube-proxy and CNI use nftables",
    "4.2.7": "the node's name is decided once, by initd, and the kubelet must not decide another",
    "4.2.9": "the kubelet asks the cluster for its serving certificate (serverTLSBootstrap) and renews it",
}


def test_the_cis_benchmark_is_passed_or_waived(cluster: Cluster, nodes: Mapping[str, Machine]) -> None:
    benchmark = golang.source(Cache(Progress()), *golang.BENCHMARK)
    controls = yaml.safe_load((benchmark / CHECKS).read_text())
    with nodes["node-1"].client() as client:
        found = {name: list(client.stream("files", path)) for name, path in FILES.items()}
        kubelet = next(entry for entry in client.call("services") if entry["name"] == "kubelet")
    owner = {(0, 0): "root:root"}
    files = {
        name: (entry["mode"], owner.get((entry["uid"], entry["gid"]), "somebody:else"))
        for name, (entry,) in found.items()
    }
    configz = cluster.control_plane.api.get("/api/v1/nodes/node-1/proxy/configz")["kubeletconfig"]
    proxy = next(iter(_pods(cluster, "app=kube-proxy")))["spec"]["containers"][0]
    commands = {"kubelet": " ".join(kubelet["argv"]), "proxy": " ".join([*proxy.get("command", []), *proxy["args"]])}
    failed = cis.failed(controls, cis.Facts(files, commands, {"kubelet": configz}))
    assert len(cis.ids(controls)) > 20, "the benchmark is there"
    assert {name: text for name, text in failed.items() if name not in WAIVERS} == {}
    assert set(WAIVERS) <= set(failed), "a waiver that is not needed any more"


def _pods(cluster: Cluster, selector: str) -> list[dict[str, Any]]:
    path = f"/api/v1/namespaces/kube-system/pods?labelSelector={selector.replace('=', '%3D')}"
    items: list[dict[str, Any]] = cluster.control_plane.api.get(path)["items"]
    return items


def metrics(text: str) -> set[str]:
    """The names of the metrics in a text of Prometheus' format."""
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("metrics", ("kubelet_running_pods", "kubelet_node_name", "rest_client_requests_total")),
        ("metrics/cadvisor", ("container_cpu_usage_seconds_total", "container_memory_working_set_bytes")),
        ("metrics/resource", ("node_cpu_usage_seconds_total", "pod_memory_working_set_bytes")),
        ("metrics/probes", ("prober_probe_total",)),
    ],
)
def test_the_kubelets_metrics_are_scraped(
    cluster: Cluster, nodes: Mapping[str, Machine], path: str, names: tuple[str, ...]
) -> None:
    assert "node-1" in nodes

    def scraped() -> bool:
        text = cluster.control_plane.api.raw("GET", f"/api/v1/nodes/node-1/proxy/{path}").decode()
        return set(names) <= metrics(text)

    until(f"{', '.join(names)} in {path}", scraped, 60)


def test_the_kubelets_summary_is_complete(cluster: Cluster, nodes: Mapping[str, Machine]) -> None:
    """cAdvisor finds image and node file system, and the cgroups of kubelet, runtime and pods."""
    assert "node-1" in nodes

    def complete() -> bool:
        summary = cluster.control_plane.api.get("/api/v1/nodes/node-1/proxy/stats/summary")
        node = summary["node"]
        systems = {entry["name"]: entry for entry in node.get("systemContainers", [])}
        return (
            {"kubelet", "runtime", "pods"} <= set(systems)
            and all(systems[name]["memory"]["workingSetBytes"] > 0 for name in systems)
            and all(systems[name]["cpu"]["usageCoreNanoSeconds"] > 0 for name in ("kubelet", "runtime", "pods"))
            and all(node["fs"][field] > 0 for field in ("capacityBytes", "availableBytes", "inodes"))
            and node["runtime"]["imageFs"]["usedBytes"] > 0
            and node["runtime"]["imageFs"]["capacityBytes"] > 0
            and node["network"]["interfaces"] != []
            and all(pod["containers"] and pod["cpu"] and pod["memory"] for pod in summary["pods"])
        )

    until("a complete summary", complete, 90)


def test_containerds_metrics_are_scraped(work: Work) -> None:
    main = container("main", "web", "get", "127.0.0.1", "1338", "/v1/metrics")
    work.apply(pod("scraper", main, hostNetwork=True, nodeName="node-1"))
    work.ended("scraper")
    found = metrics(work.logs("scraper"))
    assert {"containerd_build_info_total", "containerd_cri_container_create_seconds_count"} <= found
