"""The node as a whole: version, status, configuration, events, boot times, reboot and shutdown."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import initd
from initd import shutdown, turns
from initd.api import registry
from initd.api.protocol import HELLO, ApiError, Code, is_nonce
from initd.api.registry import Call, Role, each, method
from initd.api.types import BootTimes, ConfigInfo, Event, LastBoot, NodeStatus, VersionInfo
from initd.config.schema import HIDDEN, json_schema, shown, shown_text
from initd.files import read
from initd.supervise.states import State

IMAGE_VERSION = "/usr/share/initd/version"


@cache
def _image_version() -> str | None:
    """Read once, when the API begins: later the root's device may not answer."""
    return read(IMAGE_VERSION) or None  # a root of someone else's making has none


@method("version", Role.READER)
async def version(call: Call) -> VersionInfo:
    """Versions of initd, of the kernel and of the image, and this boot's identifier."""
    return {
        "version": initd.__version__,
        "kernel": os.uname().release,
        "python": sys.version.partition(" ")[0],
        "boot_id": call.node.boot_id,
        "image": _image_version(),
    }


@method(HELLO, Role.READER)
async def hello(call: Call, nonce: str) -> list[Any]:
    """What brings a serial line into step: the nonce, of 32 lowercase hexadecimal digits, and the version."""
    if not is_nonce(nonce):
        raise ApiError(Code.INVALID_ARGUMENT, "hello: expected 32 lowercase hexadecimal digits")
    return [nonce, await version(call)]


@method("schema", Role.READER)
async def schema(_call: Call) -> dict[str, object]:
    """Every method as plain data: its role, its result's type, and its parameters as JSON Schema."""
    return registry.schema(registry.METHODS)


@method("status", Role.READER)
async def status(call: Call) -> NodeStatus:
    """The node's name, address, phase, and whether it is ready; if not, why."""
    return call.node.status()


@method("config", Role.READER)
async def config(call: Call) -> ConfigInfo:
    """The configuration in force, without its secrets, where it came from, and what is wrong with it if anything is.

    The text of one that was refused is not shown: what is wrong may be that its secrets are in a wrong place.
    """
    node = call.node
    return {
        "source": node.found.source if node.found else None,
        "text": "" if node.found is None else shown_text(node.found.text) if node.config is not None else HIDDEN,
        "values": shown(node.config) if node.config is not None else {},
        "error": node.config_error,
    }


@method("config.schema", Role.READER)
async def config_schema(_call: Call) -> dict[str, Any]:
    """The configuration's JSON Schema."""
    return json_schema()


@method("boot.last", Role.READER)
async def last_boot(call: Call) -> LastBoot:
    """Why the boot before this one ended, as far as the hardware kept it (watchdog, pstore)."""
    return call.node.last_boot


@method("events", Role.READER)
def events(call: Call, since: int = 0, follow: bool = True) -> AsyncIterator[Event]:
    """The events after the sequence number `since`, oldest first; then, if `follow`, each new one as it comes."""
    return call.node.events.follow(since) if follow else each(call.node.events.since(since))


@method("boot.times", Role.READER)
async def boot_times(call: Call) -> BootTimes:
    """What each phase of the boot took and waited for, and when services were started and ready."""
    node = call.node
    marks = {}
    for service in node.services.values():
        for state, mark in ((State.STARTING, "exec"), (State.RUNNING, "ready")):
            first = next((entry for entry in service.history if entry["state"] == state.value), None)
            if first is not None:
                marks[f"{service.spec.name} {mark}"] = round(first["monotonic"] - node.exec_at, 6)
    ready = next((event for event in node.events.since(0) if event["kind"] == "node" and event.get("ready")), None)
    if ready is not None:
        marks["node ready"] = round(ready["monotonic"] - node.exec_at, 6)
    return {"exec": node.exec_at, "phases": list(node.boot_phases), "marks": marks}


def _request(call: Call, action: str, *, force: bool) -> float:
    running = call.node.shutdown
    if running is not None and running.action != action and not force:
        found = f"the node is on its way to {running.action}, asked for by {running.by}"
        raise ApiError(Code.FAILED_PRECONDITION, found)
    return shutdown.request(call.node, action, by=f"API, {call.peer.text}", force=force)


@method("reboot", Role.ADMIN)
async def reboot(call: Call, force: bool = False, coordinated: bool = False) -> float | None:
    """Stop everything in order and restart the machine; returns the seconds it may take. `force` waits for no one.

    `coordinated`: only when few enough nodes of the cluster are down; null: it waits for that, see `status`.
    """
    if coordinated and not force and call.node.shutdown is None:
        return await turns.coordinate(call.node, by=f"API, {call.peer.text}")
    return _request(call, "reboot", force=force)


@method("reboot.cancel", Role.ADMIN)
async def cancel_reboot(call: Call) -> bool:
    """Call off a reboot that waits for its turn; returns whether there was one."""
    return turns.call_off(call.node)


@method("shutdown", Role.ADMIN)
async def power_off(call: Call, force: bool = False) -> float:
    """Stop everything in order and power the machine off; returns the seconds it may take. `force` waits for no one."""
    return _request(call, "shutdown", force=force)
