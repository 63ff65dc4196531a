"""Leaving: the node is cordoned, its pods are evicted as their budgets allow, and it is said to be not ready.

The node authorizer and the admission plugin NodeRestriction let a node do all this to itself and its own pods.
"""

import asyncio
import time
from contextlib import suppress
from typing import TypedDict

from initd.api.protocol import ApiError, Code
from initd.cluster.objects import Object
from initd.cluster.server import MERGE, STRATEGIC, Server

CORDONED = "initd.io/cordoned"  # the boot in which initd did it
MIRROR = "kubernetes.io/config.mirror"
PATIENCE = 10.0  # seconds for an API server that cannot be reached
ROUND_SECONDS = 1.0
MARGIN_SECONDS = 2.0  # between the end of a pod's grace and the drain's
LISTED = 20


class Drained(TypedDict):
    """What became of the pods; `left` are "namespace/name: why", and the last entry counts those beyond `LISTED`."""

    evicted: int
    left: list[str]


async def drain(server: Server, seconds: float) -> Drained:
    """Cordon the node and evict its pods, until all are gone or `seconds` are over. Raises ApiError if the node cannot
    be cordoned, or nothing may be evicted.
    """
    end = time.monotonic() + seconds
    evicted: set[str] = set()
    left: dict[str, str] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await _cordon(server)
            while True:
                try:
                    await _round(server, end, evicted, left)
                except ApiError as error:
                    if error.code is Code.PERMISSION_DENIED:
                        raise
                    left = left or {"its pods": error.message}
                if not left:
                    break
                await asyncio.sleep(ROUND_SECONDS)  # nothing but a watch would tell, which is no cheaper
    lines = [f"{pod}: {why}" for pod, why in left.items()]
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return {"evicted": len(evicted), "left": lines[:LISTED] + more}


async def _cordon(server: Server) -> None:
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            node = await server.request("get the node", "GET", f"/api/v1/nodes/{server.node}")
            if not node.spec.unschedulable:  # else it is somebody else's doing, and theirs to undo
                await set_cordoned(server, cordoned=True)
        except ApiError as error:
            if error.code is not Code.UNAVAILABLE or time.monotonic() > give_up:
                raise
            await asyncio.sleep(ROUND_SECONDS)
        else:
            return


async def set_cordoned(server: Server, *, cordoned: bool) -> None:
    """Cordon the node, with a note that initd did it in this boot; or undo both. Raises ApiError."""
    note, spec = {CORDONED: server.boot_id if cordoned else None}, {"unschedulable": cordoned or None}
    body, what = (
        {"metadata": {"annotations": note}, "spec": spec},
        "cordon the node" if cordoned else "uncordon the node",
    )
    await server.request(what, "PATCH", f"/api/v1/nodes/{server.node}", body, kind=MERGE)


async def _round(server: Server, end: float, evicted: set[str], left: dict[str, str]) -> None:
    """Ask once for each pod that is still there; `left` has those then, and what each waits for. Raises ApiError."""
    path = f"/api/v1/pods?fieldSelector=spec.nodeName%3D{server.node}"
    pods = [pod async for pod in server.pages("list the node's pods", path) if is_evicted(pod)]
    names = [f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in pods]
    for gone in left.keys() - set(names):
        del left[gone]
    for pod_name, pod in zip(names, pods, strict=True):
        if pod.metadata.deletion_timestamp is not None:
            left[pod_name] = "still ending"
            continue
        try:
            await _evict(server, pod, end - time.monotonic() - MARGIN_SECONDS)
        except ApiError as error:
            if error.code is Code.PERMISSION_DENIED:
                raise
            left[pod_name] = error.message
        else:
            evicted.add(pod.metadata.uid)
            left[pod_name] = "still ending"


def is_evicted(pod: Object) -> bool:
    """Whether a drain has to do with a pod: not with a static pod's mirror, nor one of a DaemonSet, which its
    controller would only make again, nor one that is over.
    """
    daemon = any(
        owner.get("kind") == "DaemonSet" and owner.get("controller") for owner in pod.metadata.owner_references
    )
    return not daemon and MIRROR not in pod.metadata.annotations and pod.status.phase not in {"Succeeded", "Failed"}


async def _evict(server: Server, pod: Object, seconds: float) -> None:
    """Raises ApiError, RESOURCE_EXHAUSTED while a budget forbids it."""
    options: dict[str, object] = {"preconditions": {"uid": pod.metadata.uid}}
    if seconds < pod.spec.termination_grace_period_seconds:
        options["gracePeriodSeconds"] = max(1, int(seconds))  # 0 would be to kill it
    metadata = {"name": pod.metadata.name, "namespace": pod.metadata.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata, "deleteOptions": options}
    path = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}/eviction"
    await server.request("evict pods", "POST", path, body)


async def not_ready(server: Server, reason: str) -> None:
    """Set the node's condition Ready to False: the kubelet that would do it is gone. Raises ApiError."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    ready = {"type": "Ready", "status": "False", "reason": "NodeShutdown", "message": reason, **times}
    path, body = f"/api/v1/nodes/{server.node}/status", {"status": {"conditions": [ready]}}
    await server.request("say that the node is not ready", "PATCH", path, body, kind=STRATEGIC)
