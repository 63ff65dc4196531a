"""The kubelet's files: its KubeletConfiguration, the static pods, how it joins a cluster, and containerd's registries.

Field names and what they mean: k8s.io/kubelet/config/v1beta1, 0.37. The kubelet only warns of a field that it does not
know, so names are checked here. Nothing of the schema is imported: the schema uses the check.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from initd import services
from initd.config import kubeconfig
from initd.config.checks import MismatchError, plain, size_bytes, unknown_key
from initd.services import HEALTHZ_ADDRESS, HEALTHZ_PORT, MIB

if TYPE_CHECKING:
    from initd.config.schema import Config

# Measured: README, Measurements.
_SYSTEM: Final = 128 * MIB  # initd with its workers, and the kernel's own, besides /var
_RUNTIME: Final = 224 * MIB  # containerd and kubelet
_SHIM: Final = 9 * MIB  # a pod's, for as many pods as maxPods, but no more than 1 in 128 MiB of memory
_PODS: Final = 110
# The kubelet does not start if reservations leave nothing, eviction's 100Mi included.
_LEAST_FOR_PODS: Final = 128 * MIB

# Set by initd for its own reasons: a value from the user would break the node in ways that are hard to see.
_FIXED: Final[Mapping[str, Any]] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": f"unix://{services.CONTAINERD_SOCKET}",
    "staticPodPath": services.STATIC_PODS,
    "readOnlyPort": 0,
    "healthzBindAddress": HEALTHZ_ADDRESS,
    "healthzPort": HEALTHZ_PORT,
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": "/",
    "kubeletCgroups": "/kubelet",  # where it was started
    "enforceNodeAllocatable": ["pods"],
    "failCgroupV1": True,
    "oomScoreAdj": -450,  # it writes its own score from here, whatever it was started with
    "protectKernelDefaults": True,  # the sysctl table holds what it wants
    "makeIPTablesUtilChains": False,  # there is no iptables
    "resolvConf": "/etc/resolv.conf",
    "volumePluginDir": "/var/lib/kubelet/volumeplugins",  # the default is on the read-only root
    "shutdownGracePeriod": "0s",  # it would wait for logind
    "shutdownGracePeriodCriticalPods": "0s",
}
_ALONE: Final[Mapping[str, Any]] = {
    "address": HEALTHZ_ADDRESS,  # nobody can be authenticated without an API server, so nobody is served from outside
    "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},  # webhooks want a server
    "authorization": {"mode": "AlwaysAllow"},
    "registerNode": False,
    "rotateCertificates": False,
}
_IN_CLUSTER: Final[Mapping[str, Any]] = {
    "address": "0.0.0.0",
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": services.KUBELET_AUTHORITY},
    },
    "authorization": {"mode": "Webhook"},
    "registerNode": True,
    "rotateCertificates": True,
}
_DEFAULTS: Final[Mapping[str, Any]] = {
    "failSwapOn": True,
    "seccompDefault": True,
    "podPidsLimit": 4096,
    "tlsCipherSuites": [  # of TLS 1.2; those of 1.3 are all good
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    ],
    "fileCheckFrequency": "20s",  # the folder is watched as well
    "containerLogMaxSize": "5Mi",  # /var is memory
    "containerLogMaxFiles": 2,
    "imageGCHighThresholdPercent": 80,
    "imageGCLowThresholdPercent": 70,
    "evictionHard": {
        "memory.available": "100Mi",
        "nodefs.available": "10%",
        "nodefs.inodesFree": "5%",
        "imagefs.available": "15%",
        "imagefs.inodesFree": "5%",
    },
}
# Not in a table above, yet initd's: sources of pods and addresses that would bypass what it decides.
_REFUSED: Final = {
    "staticPodURL", "staticPodURLHeader", "imageServiceEndpoint", "runOnce", "enableServer", "systemCgroups",
    "cgroupsPerQOS", "podLogsDir", "shutdownGracePeriodByPodPriority", *_FIXED, *_ALONE,
}  # fmt: skip
_NAMES: Final = os.path.join(os.path.dirname(__file__), "kubelet.txt")  # all others that there are


def check_extra(value: dict[str, Any]) -> None:
    """Check the user's KubeletConfiguration fields: known, not initd's own, JSON values. Raises MismatchError."""
    plain(value)
    if not value:
        return
    with open(_NAMES, encoding="utf-8") as file:
        known = file.read().split()
    for name in value:
        if name in _REFUSED:
            raise MismatchError("a field that initd does not set itself", f"{name!r}", f".{name}")
        if name not in known:
            raise unknown_key(name, known, f".{name}")


def _reserved(config: Config, memory: int) -> dict[str, Any]:
    """What is kept back from pods on a machine with so many bytes of memory.

    systemReserved counts /var's full size: its pages are memory that pods do not get. On a machine too small for it
    all, the reservations give way, since a kubelet that refuses to start helps no one.
    """
    pods = config.kubelet.config.get("maxPods", _PODS)
    pods = pods if isinstance(pods, int) else _PODS
    most = max(0, memory - 100 * MIB - _LEAST_FOR_PODS)
    runtime = min(_RUNTIME + min(pods, memory // (128 * MIB)) * _SHIM, most)
    pids = min(100 + 12 * pods, memory // MIB)
    system = min(_SYSTEM + size_bytes(config.disks.var.size, memory), most - runtime)
    return {
        "kubeReserved": {"memory": f"{runtime // MIB}Mi", "cpu": "80m", "pid": str(pids)},
        "systemReserved": {"memory": f"{system // MIB}Mi", "cpu": "20m", "ephemeral-storage": "16Mi"},
    }


def configuration(config: Config, memory: int) -> dict[str, Any]:
    """Make the KubeletConfiguration of a node alone or in a cluster; memory is the machine's total in bytes."""
    made = {**_DEFAULTS, **_reserved(config, memory), "serverTLSBootstrap": config.cluster is not None}
    for key, value in config.kubelet.config.items():
        old = made.get(key)  # what is a table here has no table in it
        made[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return {**made, **_FIXED, **(_ALONE if config.cluster is None else _IN_CLUSTER)}


def files(config: Config, memory: int) -> dict[str, bytes]:
    """Render the kubelet's configuration file (JSON, which is YAML) and whatever else it and containerd read then."""
    made = {services.KUBELET_CONFIG: msgspec.json.encode(configuration(config, memory))}
    for name, text in config.kubelet.manifests.items():
        made[f"{services.STATIC_PODS}/{name}.yaml"] = text.encode()
    for manifest in config.kubelet.static_pods:
        metadata = manifest["metadata"]
        namespace = metadata.get("namespace", "default")
        name = metadata["name"] if namespace == "default" else f"{namespace}_{metadata['name']}"
        made[f"{services.STATIC_PODS}/{name}.json"] = msgspec.json.encode(manifest)
    if config.cluster is not None:
        joining = kubeconfig.parse(config.cluster.bootstrap_kubeconfig)
        made[services.KUBELET_BOOTSTRAP], made[services.KUBELET_AUTHORITY] = joining
    for registry in config.registries:
        lines = [f"[host.'{url}']\ncapabilities = ['pull', 'resolve']\n" for url in registry.mirrors]
        made[f"{services.CERTS}/{registry.host}/hosts.toml"] = "".join(lines).encode()
    return made
