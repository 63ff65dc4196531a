"""What the workers answer: links, disks, pods, images."""

from __future__ import annotations

from typing import cast

from initd.api.registry import Call, Role, method
from initd.api.types import DiskInfo, ImageInfo, LinkInfo, PodInfo


@method("links", Role.READER)
async def links(call: Call) -> list[LinkInfo]:
    """Every network link with its addresses and routes."""
    return cast("list[LinkInfo]", await call.node.workers["network"].call("links"))


@method("disks", Role.READER)
async def disks(call: Call) -> list[DiskInfo]:
    """Every disk and partition, with the label and type of what is on it."""
    return cast("list[DiskInfo]", await call.node.workers["devices"].call("disks"))


@method("pods", Role.READER)
async def pods(call: Call) -> list[PodInfo]:
    """Every pod that containerd has, with its containers."""
    return cast("list[PodInfo]", await call.node.workers["containers"].call("pods"))


@method("images", Role.READER)
async def images(call: Call) -> list[ImageInfo]:
    """Every container image on the node."""
    return cast("list[ImageInfo]", await call.node.workers["containers"].call("images"))
