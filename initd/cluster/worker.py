"""The cluster worker: says how this node stands in its cluster, and asks of the API server what leaving takes.

It uses the kubelet's own client certificate. Until the kubelet has one, it asks with the bootstrap kubeconfig's
credentials, only to say why there is none.
"""

import asyncio
import os
from typing import Any

import structlog

from initd.api.protocol import ApiError, Code
from initd.api.types import ClusterState
from initd.cluster import drain, joining, turn
from initd.cluster.objects import Condition
from initd.cluster.server import Server
from initd.worker import Link, Rest

CERTIFICATE = "/var/lib/kubelet/pki/kubelet-client-current.pem"  # and its key; the kubelet renews it
QUIET_SECONDS = 1.0
SOON, LATER, RESTED = 1.0, 10.0, 60.0  # seconds between two looks: while not ready, from - to; then
log = structlog.get_logger()


class Cluster:
    """The node in its cluster."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._config: dict[str, Any] = {}
        self._told: ClusterState | None = None
        self._asked = asyncio.Event()
        self._settled = False
        self._owes = True  # what an earlier boot may have left is to be taken back
        self._leaving = False  # and asked for more soon
        link.handle("configure", self.configure)
        link.handle("drain", self.drain)
        link.handle("not_ready", lambda reason: drain.not_ready(self._server(), reason))
        self._leases, self._cordons = asyncio.Lock(), asyncio.Lock()  # one after the other, as they are asked for
        link.handle("take_turn", self.take_turn)
        link.handle("give_turn_back", self.give_turn_back)

    async def configure(self, config: dict[str, Any], told: ClusterState | None = None) -> None:
        """Take the configuration: name, boot_id, max_unavailable (Leases), kubeconfig (the path of the one for
        bootstrap); and what PID 1 has been told by an earlier process.
        """
        self._config, self._told = {**config, **joining.read(config["kubeconfig"])}, told
        self._owes = not (told and told["ready"] and told["reason"] is None)
        self._asked.set()

    async def take_turn(self, count: int) -> list[str]:
        async with self._leases:
            return await turn.take(self._server(), count)

    async def give_turn_back(self, count: int) -> None:
        async with self._leases:
            await turn.give_back(self._server(), count, earlier=False)

    async def drain(self, seconds: float) -> drain.Drained:
        self._leaving = True
        async with self._cordons:  # which may be just being taken back
            pass
        return await drain.drain(self._server(), seconds)

    def rest(self) -> Rest | None:
        return Rest(RESTED, []) if self._settled and not self._leaving else None

    async def watch(self) -> None:
        """Look, say what changed, and look again: often until the node is ready, then seldom."""
        await self._asked.wait()
        delay = SOON
        while True:
            self._settled = False
            try:
                state = await self.look()
            except Exception as error:  # whatever was wrong with an answer: the next may be better
                log.exception("cluster not understood")
                state = self._state(joined=False, reason=f"{type(error).__name__}: {error}"[:500])
            if state != self._told:
                self._told = state
                await self._link.notify("state", state)
            self._settled = state["ready"] and not self._owes
            delay = RESTED if self._settled else min(delay * 1.5, LATER) if delay < RESTED else SOON
            await asyncio.sleep(delay)

    async def look(self) -> ClusterState:
        """How the node stands now, and, if that is not ready, why; raises nothing that is foreseen."""
        refused = ""
        if os.path.exists(CERTIFICATE):
            try:
                return await self._stand(self._server())
            except ApiError as error:
                if error.code is not Code.UNAUTHENTICATED:
                    return self._state(joined=True, reason=error.message)
                refused = f"{error.message}; "
        try:
            return self._state(joined=False, reason=refused + await self._why_not_joined())
        except ApiError as error:
            return self._state(joined=False, reason=refused + error.message)

    async def _stand(self, server: Server) -> ClusterState:
        try:
            node = await server.request("get the node", "GET", f"/api/v1/nodes/{server.node}")
        except ApiError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return self._state(joined=False, reason=f"node {server.node} is not registered yet")
        ready = next((item for item in node.status.conditions if item.type == "Ready"), Condition("Ready"))
        cordoned = node.spec.unschedulable
        if node.status.node_info.get("bootID") != server.boot_id:
            return self._state(cordoned=cordoned, reason="node NotReady: the kubelet has not reported since this boot")
        if ready.status != "True":
            why = ready.message or ready.reason or f"status {ready.status or 'missing'}"
            return self._state(cordoned=cordoned, reason=f"node NotReady: {why}"[:500])
        reason = None
        if self._owes:
            try:
                await turn.give_back(server, self._config["max_unavailable"])
                self._owes = False
            except ApiError as error:
                self._owes = error.code is not Code.PERMISSION_DENIED  # else this node can hold none
                reason = error.message if self._owes else None
        async with self._cordons:
            if not self._leaving and node.metadata.annotations.get(drain.CORDONED, server.boot_id) != server.boot_id:
                try:
                    await drain.set_cordoned(server, cordoned=False)
                    cordoned = False
                except ApiError as error:
                    self._owes = self._owes or error.code is not Code.PERMISSION_DENIED
                    reason = error.message
        return self._state(ready=True, cordoned=cordoned, reason=reason)

    async def _why_not_joined(self) -> str:
        if not self._config.get("token") and not self._config.get("certificate"):
            return "no client certificate, and the bootstrap kubeconfig has no credentials to ask for one"
        return await joining.why_not(Server(self._config))

    def _server(self) -> Server:
        """The API server as this node. Raises ApiError."""
        if not self._config:
            raise ApiError(Code.FAILED_PRECONDITION, "not configured yet")
        return Server(self._config, CERTIFICATE)

    def _state(
        self, *, joined: bool = True, ready: bool = False, cordoned: bool = False, reason: str | None = None
    ) -> ClusterState:
        server = self._config["server"]
        return {"server": server, "joined": joined, "ready": ready, "cordoned": cordoned, "reason": reason}


async def serve(link: Link) -> None:
    """Run until PID 1 closes its end."""
    cluster = Cluster(link)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(cluster.watch())
        await link.serve(cluster.rest, QUIET_SECONDS)
        watching.cancel()
