"""PID 1's side of the devices worker: what it tells is turned into events and requests."""

import asyncio
from typing import Any

from initd import log, shutdown
from initd.node import Node

FIELD = 256  # characters of a device's path that an event keeps


async def settled(node: Node) -> None:
    """Listen to the devices worker from now on; returns when its first walk over the devices is done."""
    done = asyncio.Event()

    def on_settled(summary: dict[str, Any]) -> None:
        done.set()
        node.works("devices")
        log.info("devices settled", **{key: summary.get(key) for key in ("modules", "devices", "milliseconds")})

    def on_device(device: dict[str, Any]) -> None:
        fields = {key: device.get(key) for key in ("action", "subsystem", "devpath", "devname")}
        node.events.emit("device", **{key: value and str(value)[:FIELD] for key, value in fields.items()})

    def on_power_button() -> None:
        shutdown.request(node, "shutdown", by="power button")

    worker = node.workers["devices"]
    for method, handler in (("settled", on_settled), ("device", on_device), ("power_button", on_power_button)):
        worker.on(method, handler)
    await done.wait()
