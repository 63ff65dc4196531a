"""The kubelet's files: its KubeletConfiguration and the static pods.

Field names and what they mean: k8s.io/kubelet/config/v1beta1, 0.37. The kubelet only warns of a field that it does not
know, so names are checked here. Nothing of the schema is imported: the schema uses the check.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from initd.config.checks import MismatchError, plain, size_bytes, unknown_key
from initd.services import CONTAINERD_SOCKET, HEALTHZ_ADDRESS, HEALTHZ_PORT, MIB, STATIC_PODS

if TYPE_CHECKING:
    from initd.config.schema import Config

_SYSTEM: Final = 256 * MIB  # containerd, kubelet, shims, initd and the kernel's own, besides /var
# The kubelet does not start if reservations leave nothing, eviction's 100Mi included.
_LEAST_FOR_PODS: Final = 128 * MIB

# Set by initd for its own reasons: a value from the user would break the node in ways that are hard to see.
_FIXED: Final[Mapping[str, Any]] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
    "staticPodPath": STATIC_PODS,
    "address": HEALTHZ_ADDRESS,  # nobody can be authenticated without an API server, so nobody is served from outside
    "readOnlyPort": 0,
    "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},  # webhooks want a server
    "authorization": {"mode": "AlwaysAllow"},
    "healthzBindAddress": HEALTHZ_ADDRESS,
    "healthzPort": HEALTHZ_PORT,
    "registerNode": False,
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
_DEFAULTS: Final[Mapping[str, Any]] = {
    "failSwapOn": True,
    "seccompDefault": True,
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
    "cgroupsPerQOS", "podLogsDir", "shutdownGracePeriodByPodPriority", *_FIXED,
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


def configuration(config: Config, memory: int) -> dict[str, Any]:
    """Make the KubeletConfiguration of a node without an API server; memory is the machine's total in bytes.

    systemReserved counts /var's full size: its pages are memory that pods do not get. On a machine too small for both,
    the reservation gives way, since a kubelet that refuses to start helps no one.
    """
    reserved = size_bytes(config.disks.var.size, memory) + _SYSTEM
    reserved = max(0, min(reserved, memory - 100 * MIB - _LEAST_FOR_PODS))
    made = {**_DEFAULTS, "systemReserved": {"memory": f"{reserved // MIB}Mi"}}
    for key, value in config.kubelet.config.items():
        old = made.get(key)  # what is a table here has no table in it
        made[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return {**made, **_FIXED}


def files(config: Config, memory: int) -> tuple[bytes, dict[str, bytes]]:
    """Render the kubelet's configuration file (JSON, which is YAML) and the static pods by file name."""
    pods = {name + ".yaml": text.encode() for name, text in config.kubelet.manifests.items()}
    for manifest in config.kubelet.static_pods:
        metadata = manifest["metadata"]
        namespace = metadata.get("namespace", "default")
        name = metadata["name"] if namespace == "default" else f"{namespace}_{metadata['name']}"
        pods[name + ".json"] = msgspec.json.encode(manifest)
    return msgspec.json.encode(configuration(config, memory)), pods
