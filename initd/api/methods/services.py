"""Services: their state, their output, their restart."""

from __future__ import annotations

from collections.abc import AsyncIterator

from initd.api.protocol import ApiError, Code
from initd.api.registry import Call, Role, each, method
from initd.api.types import LogLine, ServiceStatus
from initd.supervise.service import Service

LINE_CHARACTERS = 1000  # of each last line: whole ones, which `logs` gives, could make the answer too large


def _find(call: Call, name: str) -> Service:
    found = call.node.services.get(name) or call.node.workers.get(name)
    if found is None:
        names = ", ".join([*call.node.services, *call.node.workers])
        raise ApiError(Code.NOT_FOUND, f"no service named {name!r}; there are {names}")
    return found


@method("services", Role.READER)
async def services(call: Call) -> list[ServiceStatus]:
    """Every service and worker: its state, the desired one, restarts, history and last lines of output."""
    found = [service.status() for service in [*call.node.services.values(), *call.node.workers.values()]]
    for status in found:
        status["last_lines"] = [line[:LINE_CHARACTERS] for line in status["last_lines"]]
    return found


@method("service.restart", Role.OPERATOR)
async def restart(call: Call, name: str) -> bool:
    """End a service and start it again at once. Pods go on when containerd is restarted."""
    service = _find(call, name)
    if call.node.phase == "stopping":
        raise ApiError(Code.FAILED_PRECONDITION, "the node is stopping")
    service.restart(f"restart requested by {call.peer.text}")
    return True


@method("logs", Role.READER)
def logs(call: Call, service: str, tail: int = 100, follow: bool = False) -> AsyncIterator[LogLine]:
    """The last `tail` lines that a service wrote; then, if `follow`, each new one as it comes."""
    output = _find(call, service).output
    return output.follow(tail) if follow else each(output.tail(tail))
