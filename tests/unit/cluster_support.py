"""A kubeconfig to join a cluster with, as tests change it."""

from __future__ import annotations

import base64
import json
from typing import Any

PEM = "-----BEGIN {0}-----\nMIIB+/=\nAA==\n-----END {0}-----\n"
TOKEN = "abcdef.0123456789abcdef"  # noqa: S105 nobody's


def pem(label: str) -> str:
    return base64.b64encode(PEM.format(label).encode()).decode()


def table(**user: Any) -> dict[str, Any]:
    """A kubeconfig whose parts are named in ways that tell them apart."""
    cluster = {"server": "https://10.0.2.2:6443", "certificate-authority-data": pem("CERTIFICATE")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "join@here",
        "clusters": [{"name": "here", "cluster": cluster}],
        "users": [{"name": "join", "user": user or {"token": TOKEN}}],
        "contexts": [{"name": "join@here", "context": {"cluster": "here", "user": "join", "namespace": "x"}}],
    }


def kubeconfig(**user: Any) -> str:
    return json.dumps(table(**user))
