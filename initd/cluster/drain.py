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
PATIENCE = 10.0  # seconds, or a quarter of all, for an API server that does not do what it could
AT_ONCE = 6  # requests: one that hangs must not hold up the rest
ROUND_SECONDS = 1.0
MARGIN_SECONDS = 2.0  # between the end of a pod's grace and the drain's
LISTED = 20
FINAL = {Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.NOT_FOUND, Code.FAILED_PRECONDITION}


class Drained(TypedDict):
    """What became of the pods; `left` are "namespace/name: why", and the last entry counts those beyond `LISTED`."""

    evicted: int
    left: list[str]


async def drain(server: Server, seconds: float) -> Drained:
    """Cordon the node and evict its pods, until all are gone, nothing but pods that may not be evicted has been left
    for a while, or `seconds` are over. Raises ApiError if the node cannot be cordoned, or its pods not be listed.
    """
    end, patience = time.monotonic() + seconds, max(PATIENCE, seconds / 4)
    evicted: set[str] = set()
    left: dict[str, str] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await _cordon(server, patience)
            hoped = time.monotonic()
            while True:
                try:
                    if await _round(server, end, evicted, left):
                        hoped = time.monotonic()
                except ApiError as error:
                    if error.code is Code.PERMISSION_DENIED:
                        raise
                    left = left or {"its pods": error.message}
                if not left or time.monotonic() > hoped + patience:
                    break
                await asyncio.sleep(ROUND_SECONDS)  # nothing but a watch would tell, which is no cheaper
    lines = [f"{pod}: {why}" for pod, why in left.items()]
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return {"evicted": len(evicted), "left": lines[:LISTED] + more}


async def _cordon(server: Server, patience: float) -> None:
    give_up = time.monotonic() + patience
    while True:
        try:
            node = await server.request("get the node", "GET", f"/api/v1/nodes/{server.node}")
            # What is cordoned without a note is somebody else's doing, and theirs to undo.
            if not node.spec.unschedulable or CORDONED in node.metadata.annotations:
                await set_cordoned(server, cordoned=True)
        except ApiError as error:
            if error.code in FINAL or time.monotonic() > give_up:
                raise
            await asyncio.sleep(ROUND_SECONDS)
        else:
            return


async def set_cordoned(server: Server, *, cordoned: bool) -> None:
    """Cordon the node, with a note that initd did it in this boot; or undo both. Raises ApiError."""
    note, spec = {CORDONED: server.boot_id if cordoned else None}, {"unschedulable": cordoned or None}
    body, what = {"metadata": {"annotations": note}, "spec": spec}, f"{'' if cordoned else 'un'}cordon the node"
    await server.request(what, "PATCH", f"/api/v1/nodes/{server.node}", body, kind=MERGE)


async def _round(server: Server, end: float, evicted: set[str], left: dict[str, str]) -> bool:
    """Ask once for each pod that is still there; `left` has those then, and what each waits for. Returns whether there
    is one that may be evicted. Raises ApiError.
    """
    path = f"/api/v1/pods?fieldSelector=spec.nodeName%3D{server.node}"
    pods = [pod async for pod in server.pages("list the node's pods", path) if is_evicted(pod)]
    names = [f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in pods]
    for gone in left.keys() - set(names):
        del left[gone]
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(name: str, pod: Object) -> bool:
        if pod.metadata.deletion_timestamp is None:
            try:
                async with gate:
                    await _evict(server, pod, end - time.monotonic() - MARGIN_SECONDS)
            except ApiError as error:
                left[name] = error.message
                return error.code is not Code.PERMISSION_DENIED  # which a namespace that ends, or a webhook, says, too
            evicted.add(pod.metadata.uid)
        left[name] = "still ending"
        return True

    return any(await asyncio.gather(*map(ask, names, pods)))


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
