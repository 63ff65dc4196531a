"""What initd reads of Kubernetes's objects, in one shape for all kinds: few fields, whose types msgspec checks."""

from typing import Any

from msgspec import Struct, field


class _Fields(Struct, rename="camel"):
    pass


class Metadata(_Fields):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""  # of one form, so in the order of time
    deletion_timestamp: str | None = None
    annotations: dict[str, str] = {}
    owner_references: list[dict[str, Any]] = []
    rest: str = field(name="continue", default="")  # of a list: by what its next part is asked for


class Condition(_Fields):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class Spec(_Fields):
    """Of a node; a pod; a Lease; a certificate signing request (PEM)."""

    unschedulable: bool = False
    termination_grace_period_seconds: int = 30
    holder_identity: str | None = None
    request: bytes = b""


class Status(_Fields):
    """Of a node; a pod; a certificate signing request."""

    conditions: list[Condition] = []
    node_info: dict[str, Any] = {}
    phase: str = ""
    certificate: bytes = b""


class Object(_Fields):
    """An object, or a list of such."""

    metadata: Metadata = field(default_factory=Metadata)
    spec: Spec = field(default_factory=Spec)
    status: Status = field(default_factory=Status)
    items: list["Object"] = []
