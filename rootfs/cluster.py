"""The images of the cluster's own pods, which a node pulls from the harness' registry: OCI archives, NAME.tar."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from native.oci import File, Image, write
from qemu.registry import REGISTRY
from rootfs.closed import LIBRARY_PATHS

if TYPE_CHECKING:
    from pathlib import Path

    from rootfs.tools import Tools

BALLAST = 32 << 20  # bytes of an image for whoever has to see whether it is still there
LOADER = "ld-linux-x86-64.so.2"


def _libraries(root: Path, program: str, tools: Tools) -> dict[str, File]:
    """What `program` of the tree at `root` needs to run, itself included, by the path where it looks for it."""
    files = {f"/{program}": File(root / program, 0o755)}
    pending = [program]
    while pending:
        paths = [f"/mnt/root/{name}" for name in pending]
        dynamic = tools.run("readelf", "--dynamic", *paths, binds={"root": root})
        pending = []
        for name in sorted(set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))):
            path = f"/lib64/{name}" if name == LOADER else f"/{LIBRARY_PATHS[0]}/{name}"
            if path not in files:
                found = next(root / folder / name for folder in LIBRARY_PATHS if (root / folder / name).exists())
                files[path] = File(found, 0o755)
                pending.append(found.resolve().relative_to(root.resolve()).as_posix())
    return files


def make_images(folder: Path, pods: Path, root: Path, busybox: Path, tools: Tools) -> None:
    """Write `pods` (kube-proxy needs nft, from the tree at `root`), `busybox` and `ballast` into `folder`."""
    nft = _libraries(root, "usr/sbin/nft", tools)
    path = {"PATH": "/usr/sbin:/bin"}
    write(folder / "pods.tar", Image(f"{REGISTRY}/pods:1", {"/pods": File(pods, 0o755), **nft}, ("/pods",), env=path))
    shell = {name: File(busybox, 0o755) for name in ("/bin/busybox", "/bin/sh")}
    for name, more in (("busybox", {}), ("ballast", {"/ballast": File(bytes(BALLAST))})):
        write(folder / f"{name}.tar", Image(f"{REGISTRY}/{name}:1", shell | more, (), ("/bin/sh",), env=path))
