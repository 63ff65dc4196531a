"""What the workers answer: links, disks, files, pods, images."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import cast

from initd.api.protocol import ApiError, Code
from initd.api.registry import Call, Role, method
from initd.api.types import DiskInfo, FileInfo, ImageInfo, LinkInfo, PodInfo
from initd.mounts import TABLE, after_var, on_state


@method("links", Role.READER)
async def links(call: Call) -> list[LinkInfo]:
    """Every network link with its addresses and routes."""
    return cast("list[LinkInfo]", await call.node.workers["network"].call("links"))


@method("disks", Role.READER)
async def disks(call: Call) -> list[DiskInfo]:
    """Every disk and partition, with the label and type of what is on it."""
    return cast("list[DiskInfo]", await call.node.workers["devices"].call("disks"))


@method("files", Role.OPERATOR)
async def files(call: Call, path: str) -> AsyncIterator[FileInfo]:
    """The file at an absolute path, or each in the directory there, mount points left out; no link is followed."""
    if not path.startswith("/") or "\0" in path:
        raise ApiError(Code.INVALID_ARGUMENT, f"files: found path {path!r}, expected an absolute one")
    path = os.path.normpath(path).replace("//", "/")
    above = [row.target for row in (*TABLE, *after_var(), *on_state("", "")) if f"{path}/".startswith(f"{row.target}/")]
    # Not here: the root and the keys are on disks.
    for found in await call.node.workers["devices"].call("files", max(above, key=len, default="/"), path):
        yield found


@method("pods", Role.READER)
async def pods(call: Call) -> list[PodInfo]:
    """Every pod that containerd has, with its containers."""
    return cast("list[PodInfo]", await call.node.workers["containers"].call("pods"))


@method("images", Role.READER)
async def images(call: Call) -> list[ImageInfo]:
    """Every container image on the node."""
    return cast("list[ImageInfo]", await call.node.workers["containers"].call("images"))
