"""Turns: a node that is to reboot with others in mind holds one of a few Leases while it is down.

There are as many as nodes may be down at once. None expires: who does not come back keeps its own, and the rest wait.
NodeRestriction keeps nodes from all Leases but their own heartbeat, so these are a service account's, as which nodes
may act (the README's Rights), in a namespace that has nothing else.
"""

import time

from initd.api.protocol import ApiError, Code
from initd.cluster.objects import Object
from initd.cluster.server import MERGE, Server, line

ACCOUNT = "system:serviceaccount:initd-reboot:node"
BOOT = "initd.io/boot"  # the boot in which a Lease was taken
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/initd-reboot/leases"
_WHAT = "hold Leases for a reboot"


async def take(server: Server, count: int) -> list[str]:
    """Take one of `count` Leases, or the one that is this node's already. Returns nothing if it has one now, else who
    has them. Raises ApiError.
    """
    leases = [await _get(server, number) for number in range(count)]
    holders = [lease.spec.holder_identity or "" if lease else "" for lease in leases]
    for number in sorted(range(count), key=lambda number: holders[number] != server.node):
        if holders[number] not in {"", server.node}:
            continue
        now = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}.000000Z"
        body: dict[str, dict[str, object]] = {
            "metadata": {"name": _name(number), "annotations": {BOOT: server.boot_id}},
            "spec": {"holderIdentity": server.node, "acquireTime": now},
        }
        try:
            await _write(server, number, leases[number], body)
        except ApiError as error:
            if error.code is not Code.ABORTED:
                raise
            holders[number] = "another node"  # was quicker
        else:
            return []
    return [f"{_name(number)} is held by {line(holder)}" for number, holder in enumerate(holders)]


async def give_back(server: Server, count: int, *, earlier: bool = True) -> None:
    """Let go of what this node took in an `earlier` boot, or else in this one. Raises ApiError."""
    for number in range(count):
        lease = await _get(server, number)
        if lease is None or lease.spec.holder_identity != server.node:
            continue
        if (lease.metadata.annotations.get(BOOT) != server.boot_id) is earlier:
            await _write(server, number, lease, {"metadata": {}, "spec": {"holderIdentity": None}})


async def _get(server: Server, number: int) -> Object | None:
    try:
        return await server.request(_WHAT, "GET", f"{_LEASES}/{_name(number)}", acting_as=ACCOUNT)
    except ApiError as error:
        if error.code is Code.NOT_FOUND:
            return None
        raise


async def _write(server: Server, number: int, lease: Object | None, body: dict[str, dict[str, object]]) -> None:
    """Change it, or make it; ApiError ABORTED if another was quicker."""
    if lease is None:
        await server.request(_WHAT, "POST", _LEASES, body, acting_as=ACCOUNT)
        return
    body["metadata"]["resourceVersion"] = lease.metadata.resource_version
    path = f"{_LEASES}/{_name(number)}"
    await server.request(_WHAT, "PATCH", path, body, kind=MERGE, acting_as=ACCOUNT)


def _name(number: int) -> str:
    return f"slot-{number}"
