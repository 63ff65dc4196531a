"""The files made from the configuration: the kubelet's, containerd's, and the static pods."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import force_setattr

from initd import services
from initd.config import containerd, kubelet
from initd.config.schema import Config, KubeletConfig, parse
from tests.unit.cluster_support import TOKEN, kubeconfig

GIB = 1 << 30
CLUSTER = f"[cluster]\nbootstrap_kubeconfig = '''{kubeconfig()}'''"


def rendered(text: str = "", memory: int = 2 * GIB) -> dict[str, Any]:
    configuration: dict[str, Any] = json.loads(kubelet.files(parse(text, "x"), memory)[services.KUBELET_CONFIG])
    return configuration


def test_the_kubelet_serves_nobody_without_an_api_server() -> None:
    configuration = rendered()
    assert configuration["authentication"] == {"anonymous": {"enabled": False}, "webhook": {"enabled": False}}
    assert configuration["authorization"] == {"mode": "AlwaysAllow"}
    assert configuration["address"] == "127.0.0.1"
    assert configuration["readOnlyPort"] == 0
    assert not any(configuration[name] for name in ("registerNode", "rotateCertificates", "serverTLSBootstrap"))


def test_the_kubelet_of_a_cluster_serves_whom_the_api_server_knows() -> None:
    configuration = rendered(CLUSTER)
    assert configuration["authentication"] == {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": "/run/initd/kubelet/ca.crt"},
    }
    assert configuration["authorization"] == {"mode": "Webhook"}
    assert configuration["address"] == "0.0.0.0"
    assert configuration["readOnlyPort"] == 0
    assert all(configuration[name] for name in ("registerNode", "rotateCertificates", "serverTLSBootstrap"))
    assert not rendered(f"{CLUSTER}\n[kubelet.config]\nserverTLSBootstrap = false")["serverTLSBootstrap"]


def test_a_node_of_a_cluster_is_given_what_it_joins_with() -> None:
    made = kubelet.files(parse(CLUSTER, "x"), GIB)
    joining = json.loads(made["/run/initd/kubelet/bootstrap.kubeconfig"])
    assert joining["users"][0]["user"]["token"] == TOKEN
    assert made["/run/initd/kubelet/ca.crt"].startswith(b"-----BEGIN CERTIFICATE-----\n")
    assert not [path for path in kubelet.files(Config(), GIB) if "kubeconfig" in path or "ca.crt" in path]


def test_mirrors_of_a_registry_are_written_as_containerd_reads_them() -> None:
    text = (
        "[[registries]]\nhost = 'registry.example:5000'\nmirrors = ['http://192.0.2.5:5000', 'https://[2001:db8::1]/x']"
    )
    made = kubelet.files(parse(text, "x"), GIB)
    written = made["/run/initd/containerd/certs.d/registry.example:5000/hosts.toml"].decode()
    assert list(tomllib.loads(written)["host"].items()) == [
        ("http://192.0.2.5:5000", {"capabilities": ["pull", "resolve"]}),
        ("https://[2001:db8::1]/x", {"capabilities": ["pull", "resolve"]}),
    ]
    assert tomllib.loads(containerd.render())["plugins"]["io.containerd.cri.v1.images"]["registry"] == {
        "config_path": services.CERTS
    }


def test_the_kubelet_and_the_services_agree() -> None:
    configuration = rendered()
    assert configuration["oomScoreAdj"] == services.KUBELET.oom_score_adj
    assert configuration["kubeletCgroups"] == f"/{services.KUBELET.cgroup}"
    assert configuration["containerRuntimeEndpoint"] == f"unix://{services.CONTAINERD_SOCKET}"
    probe = services.KUBELET.liveness
    assert isinstance(probe, services.HttpProbe)
    assert (configuration["healthzBindAddress"], configuration["healthzPort"]) == (probe.host, probe.port)


@pytest.mark.parametrize(
    ("size", "memory", "system", "runtime"),
    [
        ("50%", 2 * GIB, "1152Mi", "368Mi"),  # half of it for /var and 128 Mi; 224 Mi, and 9 Mi for each of 16 shims
        ("1Gi", 4 * GIB, "1152Mi", "512Mi"),
        ("1Gi", 64 * GIB, "1152Mi", "1214Mi"),  # 110 shims
        ("90%", 1 * GIB, "500Mi", "296Mi"),  # would leave nothing: gives way
        ("64Mi", 128 << 20, "0Mi", "0Mi"),
    ],
)
def test_var_counts_as_reserved_but_never_keeps_the_kubelet_from_starting(
    size: str, memory: int, system: str, runtime: str
) -> None:
    configuration = rendered(f"[disks.var]\nsize = '{size}'", memory)
    assert configuration["systemReserved"] == {"memory": system, "cpu": "20m", "ephemeral-storage": "16Mi"}
    assert configuration["kubeReserved"]["memory"] == runtime
    # The kernel lets a machine have a thread for each 128 KiB of its memory.
    assert int(configuration["kubeReserved"]["pid"]) <= memory // (128 << 10) // 8


def test_what_is_reserved_follows_max_pods_and_can_be_said() -> None:
    extra = "[kubelet.config]\nmaxPods = 10\n[kubelet.config.kubeReserved]\ncpu = '1'"
    assert rendered(extra, 64 * GIB)["kubeReserved"] == {"memory": "314Mi", "cpu": "1", "pid": "220"}


def test_fields_of_the_user_are_merged_over_the_defaults() -> None:
    configuration = rendered("[kubelet.config]\nmaxPods = 20\nevictionHard = { 'memory.available' = '50Mi' }")
    assert configuration["maxPods"] == 20
    assert configuration["evictionHard"]["memory.available"] == "50Mi"
    assert configuration["evictionHard"]["nodefs.available"] == "10%"


@given(st.dictionaries(st.sampled_from(sorted(rendered())), st.integers() | st.text(max_size=4), max_size=5))
def test_no_field_of_the_user_replaces_one_that_initd_needs(extra: dict[str, Any]) -> None:
    """Even if the check were passed by: the fixed fields are laid over everything."""
    config = Config(kubelet=KubeletConfig())
    force_setattr(config.kubelet, "config", extra)  # past the check
    fixed = {name: value for name, value in rendered().items() if name in {*kubelet._FIXED, *kubelet._ALONE}}
    assert fixed.items() <= kubelet.configuration(config, 2 * GIB).items()
    assert len(fixed) > 20


def test_static_pods_become_one_file_each() -> None:
    text = """
    [kubelet.manifests]
    dns = "apiVersion: v1"
    [[kubelet.static_pods]]
    apiVersion = "v1"
    kind = "Pod"
    metadata = { name = "web", labels = { a = "é" } }
    spec = { hostNetwork = true, priority = 5, containers = [{ name = "web", image = "x" }] }
    [[kubelet.static_pods]]
    apiVersion = "v1"
    kind = "Pod"
    metadata = { name = "web", namespace = "other" }
    spec.containers = [{ name = "web", image = "x" }]
    """
    made = kubelet.files(parse(text, "x"), GIB)
    pods = {
        path.rpartition("/")[2]: data for path, data in made.items() if path.startswith("/etc/kubernetes/manifests/")
    }
    assert sorted(pods) == ["dns.yaml", "other_web.json", "web.json"]
    assert pods["dns.yaml"] == b"apiVersion: v1"
    assert json.loads(pods["web.json"]) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"a": "é"}},
        "spec": {"hostNetwork": True, "priority": 5, "containers": [{"name": "web", "image": "x"}]},
    }


@pytest.mark.parametrize("level", ["trace", "debug", "info", "warn", "error"])
def test_containerds_file_is_toml_that_says_what_the_design_does(level: str) -> None:
    table = tomllib.loads(containerd.render(level, 1338))
    assert table["plugins"]["io.containerd.server.v1.metrics"] == {"address": "127.0.0.1:1338"}
    plugins = table["plugins"]
    runc = plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["runc"]["options"]
    assert table["version"] == 4
    assert table["debug"]["level"] == level
    assert table["oom_score"] == services.CONTAINERD.oom_score_adj
    assert table["state"] + "/containerd.sock" == services.CONTAINERD_SOCKET
    assert runc == {"SystemdCgroup": False, "ShimCgroup": "/shims"}
    assert plugins["io.containerd.nri.v1.nri"]["disable"] is True
    assert table["required_plugins"] == ["io.containerd.grpc.v1.cri"]
    assert not set(table["required_plugins"]) & set(table["disabled_plugins"])


def test_the_default_level_of_the_schema_is_the_images() -> None:
    assert containerd.render() == containerd.render(Config().containerd.log_level)
