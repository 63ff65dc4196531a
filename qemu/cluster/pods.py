"""What runs in the cluster on every node: its network and kube-proxy, as DaemonSets from the image `pods`."""

from __future__ import annotations

from typing import Any

from qemu.cluster.controlplane import HOST, PODS
from qemu.registry import REGISTRY

NAMESPACE = "kube-system"
_RBAC = "rbac.authorization.k8s.io"
_HEALTH = 10256  # kube-proxy's


def image(name: str) -> str:
    """The name of one of the images that the harness' registry serves."""
    return f"{REGISTRY}/{name}:1"


def network(port: int) -> list[dict[str, Any]]:
    """Return the objects that give the cluster its network: a bridge, routes, and Services in nftables mode.

    port: the API server's. Both programs go to it directly, since they make the Service by which others do.
    """
    reads = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
    cni = _container("cni", ["cni", PODS], port, volumeMounts=[{"name": "net", "mountPath": "/etc/cni/net.d"}])
    net = {"name": "net", "hostPath": {"path": "/etc/cni/net.d", "type": "DirectoryOrCreate"}}
    proxy = _container(
        "kube-proxy",
        ["kube-proxy", "--proxy-mode=nftables", f"--cluster-cidr={PODS}", "--hostname-override=$(NODE_NAME)"],
        port,
        readinessProbe={"httpGet": {"path": "/healthz", "port": _HEALTH}, "periodSeconds": 2},
    )
    return [
        _account("cni"),
        {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": "cluster-cni"}, "rules": [reads]},
        _binding("cni", "cluster-cni"),
        _daemon("cni", cni, net),
        _account("kube-proxy"),
        _binding("kube-proxy", "system:node-proxier"),
        _daemon("kube-proxy", proxy),
    ]


def _container(name: str, args: list[str], port: int, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": image("pods"),
        "args": args,
        "env": [
            {"name": "KUBERNETES_SERVICE_HOST", "value": HOST},
            {"name": "KUBERNETES_SERVICE_PORT", "value": str(port)},
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "resources": {"requests": {"cpu": "20m", "memory": "30Mi"}},
        "securityContext": {"privileged": True},  # modules, kernel parameters, nftables and routes of the node
        **fields,
    }


def _account(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}


def _binding(account: str, role: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"cluster-{account}"},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    }


def _daemon(name: str, container: dict[str, Any], *volumes: dict[str, Any]) -> dict[str, Any]:
    labels = {"app": name}
    spec = {
        "serviceAccountName": name,
        "hostNetwork": True,
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": list(volumes),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
