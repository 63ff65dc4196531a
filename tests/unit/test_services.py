"""The services, as data."""

from __future__ import annotations

import resource

import pytest

from initd import cgroups, services
from initd.config.schema import ClusterConfig, Config, KubeletConfig
from tests.unit.cluster_support import kubeconfig


def test_there_are_exactly_two_services() -> None:
    assert [service.name for service in services.SERVICES] == ["containerd", "kubelet"]


@pytest.mark.parametrize("service", services.SERVICES, ids=lambda service: service.name)
def test_a_service_runs_in_a_cgroup_of_the_tree_with_the_limits_that_pods_inherit(
    service: services.ServiceSpec,
) -> None:
    assert service.cgroup in dict(cgroups.TREE)
    assert service.rlimits == {
        resource.RLIMIT_NOFILE: (1048576, 1048576),
        resource.RLIMIT_NPROC: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        resource.RLIMIT_CORE: (0, 0),
    }
    assert service.argv[0].startswith("/usr/bin/")
    assert service.environment["PATH"]
    assert service.notify
    assert service.liveness is not None


def test_pods_survive_containerd_but_nothing_survives_the_kubelet() -> None:
    assert services.CONTAINERD.main_only
    assert not services.KUBELET.main_only


def test_only_the_kubelet_has_a_watchdog_since_containerd_never_feeds_one() -> None:
    assert services.CONTAINERD.watchdog_seconds == 0
    assert services.KUBELET.watchdog_seconds >= 30


def test_the_kubelets_command_line_names_the_node() -> None:
    argv = services.kubelet_argv("node-1", "192.0.2.10", Config(kubelet=KubeletConfig(verbosity=4)))
    assert argv == (
        "/usr/bin/kubelet",
        "--config=/run/initd/kubelet/config.yaml",
        "--hostname-override=node-1",
        "--runtime-cgroups=/runtime",
        "--node-ip=192.0.2.10",
        "-v=4",
    )


def test_without_an_address_the_kubelet_picks_one() -> None:
    assert not [argument for argument in services.kubelet_argv("node-1", None, Config()) if "node-ip" in argument]


def test_a_kubelet_of_a_cluster_is_told_how_to_join() -> None:
    cluster = ClusterConfig(kubeconfig(), labels={"topology.kubernetes.io/zone": "a", "example.org/x": ""})
    argv = services.kubelet_argv("node-1", None, Config(cluster=cluster))
    assert argv[4:-1] == (
        "--bootstrap-kubeconfig=/run/initd/kubelet/bootstrap.kubeconfig",
        "--kubeconfig=/var/lib/kubelet/kubeconfig",
        "--cert-dir=/var/lib/kubelet/pki",
        "--node-labels=topology.kubernetes.io/zone=a",
        "--node-labels=example.org/x=",
    )


def test_containerd_starts_with_the_images_file_unless_one_was_rendered() -> None:
    assert services.CONTAINERD.argv[-1] == services.CONTAINERD_DEFAULT_CONFIG
    assert services.containerd_argv(services.CONTAINERD_CONFIG)[-1] == services.CONTAINERD_CONFIG
