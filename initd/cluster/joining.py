"""Why a node has no client certificate yet, as its bootstrap credentials can tell."""

import binascii
from typing import Any

import msgspec

from initd.cluster.server import Server, line

_SIGNER = "kubernetes.io%2Fkube-apiserver-client-kubelet"
_REQUESTS = f"/apis/certificates.k8s.io/v1/certificatesigningrequests?fieldSelector=spec.signerName%3D{_SIGNER}"


def read(path: str) -> dict[str, Any]:
    """What initd's kubeconfig holds: server, ca, and token, or certificate and key; None for what it has not."""
    with open(path, "rb") as file:
        found = msgspec.json.decode(file.read())
    fields = {**found["clusters"][0]["cluster"], **found["users"][0]["user"]}
    names = {"ca": "certificate-authority", "certificate": "client-certificate", "key": "client-key"}
    data = {name: fields.get(f"{long}-data") for name, long in names.items()}
    pems = {name: text and binascii.a2b_base64(text).decode("ascii") for name, text in data.items()}
    return {**pems, "server": fields["server"], "token": fields.get("token")}


async def why_not(server: Server) -> str:
    """What has become of the node's newest certificate signing request. Raises ApiError."""
    pages = server.pages("list certificate signing requests", _REQUESTS, 250)
    mine = [request async for request in pages if is_of(request.spec.request, server.node)]
    if not mine:
        return "the kubelet has not sent a certificate signing request yet"
    newest = max(mine, key=lambda request: request.metadata.creation_timestamp)
    what = f"certificate signing request {line(newest.metadata.name)}"
    conditions = {condition.type: condition for condition in newest.status.conditions}
    for bad in ("Denied", "Failed"):
        if bad in conditions:
            return f"{what} {bad.lower()}: {line(conditions[bad].message or conditions[bad].reason)}"
    if "Approved" not in conditions:
        return f"{what} pending approval"
    if not newest.status.certificate:
        return f"{what} approved, not signed yet"
    return f"{what} signed; the kubelet has yet to take the certificate"


def is_of(request: bytes, name: str) -> bool:
    """Whether a request (PEM) is for that node: its subject's name, as DER, begins with its length."""
    try:
        der = binascii.a2b_base64(b"".join(line for line in request.splitlines() if not line.startswith(b"-----")))
    except binascii.Error:
        return False
    subject = f"system:node:{name}".encode()
    return bytes([len(subject) & 0xFF]) + subject in der
