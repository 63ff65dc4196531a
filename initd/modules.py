"""Kernel modules that PID 1 loads itself, before the devices worker runs, and the device nodes that modules name.

The devices worker loads what the hardware asks for; here stands only what the boot cannot wait for. Modules in the
image are not compressed, so loading one is a single finit_module(2).
"""

from __future__ import annotations

import os
import stat

from initd import native

# overlay: containerd and /opt. virtio_net: a lease is on the kubelet's way. qemu_fw_cfg: a source of configuration.
EARLY = ("overlay", "qemu_fw_cfg", "failover", "net_failover", "virtio_net", "af_packet")


def directory() -> str:
    """Where the running kernel's modules are."""
    return f"/usr/lib/modules/{os.uname().release}"


def load_early(names: tuple[str, ...] = EARLY) -> list[str]:
    """Load `names` with what they depend on; returns one line for each that failed. One built in is no failure."""
    try:
        with open(f"{directory()}/modules.dep", encoding="ascii") as file:
            paths = _dependencies(file.read())
    except OSError as error:
        return [f"modules.dep: {error.strerror}"]
    failures: list[str] = []
    for name in names:
        for path in paths.get(name, ()):
            try:
                native.finit_module(f"{directory()}/{path}")
            except FileExistsError:
                continue  # loaded already, by stage 1 or for another one
            except OSError as error:
                failures.append(f"{path}: {error.strerror}")
    return failures


def _dependencies(text: str) -> dict[str, list[str]]:
    """Module name -> files to load, in order (modules.dep(5) lists what a module needs, the nearest first)."""
    table = {}
    for line in text.splitlines():
        path, _, needs = line.partition(":")
        name = os.path.basename(path).partition(".")[0].replace("-", "_")
        table[name] = [*reversed(needs.split()), path]
    return table


def make_static_nodes() -> int:
    """Make the device nodes that modules.devname lists, so that opening one (/dev/fuse, /dev/net/tun) loads its module.

    Returns how many were made. Raises OSError if the list or /dev cannot be used.
    """
    made = 0
    with open(f"{directory()}/modules.devname", encoding="ascii") as file:
        lines = [line.split() for line in file if not line.startswith("#")]
    for _, node, device in lines:
        path = f"/dev/{node}"
        if os.path.exists(path):
            continue
        major, minor = device[1:].split(":")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        kind = stat.S_IFBLK if device[0] == "b" else stat.S_IFCHR
        try:
            os.mknod(path, kind | 0o600, os.makedev(int(major), int(minor)))
            made += 1
        except FileExistsError:
            continue  # its module has just been loaded, and devtmpfs made it
    return made
