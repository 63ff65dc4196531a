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

GIB = 1 << 30


def rendered(text: str = "", memory: int = 2 * GIB) -> dict[str, Any]:
    data, _ = kubelet.files(parse(text, "x"), memory)
    configuration: dict[str, Any] = json.loads(data)
    return configuration


def test_the_kubelet_serves_nobody_without_an_api_server() -> None:
    configuration = rendered()
    assert configuration["authentication"] == {"anonymous": {"enabled": False}, "webhook": {"enabled": False}}
    assert configuration["authorization"] == {"mode": "AlwaysAllow"}
    assert configuration["address"] == "127.0.0.1"
    assert configuration["readOnlyPort"] == 0


def test_the_kubelet_and_the_services_agree() -> None:
    configuration = rendered()
    assert configuration["oomScoreAdj"] == services.KUBELET.oom_score_adj
    assert configuration["kubeletCgroups"] == f"/{services.KUBELET.cgroup}"
    assert configuration["containerRuntimeEndpoint"] == f"unix://{services.CONTAINERD_SOCKET}"
    probe = services.KUBELET.liveness
    assert isinstance(probe, services.HttpProbe)
    assert (configuration["healthzBindAddress"], configuration["healthzPort"]) == (probe.host, probe.port)


@pytest.mark.parametrize(
    ("size", "memory", "reserved"),
    [
        ("50%", 2 * GIB, "1280Mi"),  # half of it and 256 for the system
        ("1Gi", 4 * GIB, "1280Mi"),
        ("90%", 1 * GIB, "796Mi"),  # would leave nothing: gives way
        ("64Mi", 128 << 20, "0Mi"),
    ],
)
def test_var_counts_as_reserved_but_never_keeps_the_kubelet_from_starting(
    size: str, memory: int, reserved: str
) -> None:
    assert rendered(f"[disks.var]\nsize = '{size}'", memory)["systemReserved"] == {"memory": reserved}


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
    fixed = {name: value for name, value in rendered().items() if name in kubelet._FIXED}
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
    _, pods = kubelet.files(parse(text, "x"), GIB)
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
    table = tomllib.loads(containerd.render(level))
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
