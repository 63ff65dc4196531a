"""The pods that the tests run on a node, and the configuration that brings them there."""

from __future__ import annotations

from typing import Any

from qemu.probe import PORT as PROBE_PORT
from qemu.probe import SHARED as HOST_SHARED
from qemu.probe import container, pod
from qemu.probe import manifest as probe
from qemu.toml import toml

__all__ = ["HOST_SHARED", "PROBE_PORT", "WEB_PORT", "config", "container", "pod", "probe", "web"]

WEB_PORT = 8080


def web() -> dict[str, Any]:
    """Return the pod with every kind of volume that a standalone kubelet gives, an HTTP server behind a hostPort.

    A projected volume is not among them: without an API server the kubelet refuses it (its client is missing).
    A downwardAPI volume is the same to the node: a tmpfs that the kubelet mounts by exec'ing mount.
    """
    labels = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    return pod(
        "web",
        container(
            "web",
            "web",
            "serve",
            str(WEB_PORT),
            "/data",
            ports=[{"containerPort": WEB_PORT, "hostPort": WEB_PORT}],
            volumeMounts=[
                {"name": "downward", "mountPath": "/data/downward"},
                {"name": "downward", "mountPath": "/data/label", "subPath": "labels"},
                {"name": "memory", "mountPath": "/data/memory"},
                {"name": "parts", "mountPath": "/data/part", "subPath": "deep/down"},
                {"name": "shared", "mountPath": "/data/shared", "mountPropagation": "HostToContainer"},
            ],
        ),
        volumes=[
            {"name": "downward", "downwardAPI": {"items": [labels]}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "parts", "emptyDir": {}},
            {"name": "shared", "hostPath": {"path": HOST_SHARED, "type": "DirectoryOrCreate"}},
        ],
    )


def config(*pods: dict[str, Any], extra: str = "") -> str:
    """Return a node's configuration with these static pods; extra is TOML text that follows."""
    return f"[kubelet]\nstatic_pods = {toml(list(pods))}\n{extra}"
