"""Runs Debian 13's compilers and image tools from their own tree, the same on every host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rootfs.cache import run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# $1 is the tree, then pairs (source, name below /mnt), then "--" and the command. Every mount is made in a mount
# namespace of this process alone, so that none is left behind however the command ends. The tree is read-only: its key
# says what is in it.
SCRIPT = """
set -e
tree=$1; shift
mount --bind "$tree" "$tree"
mount -o remount,bind,ro "$tree"
mount -t tmpfs tmpfs "$tree/mnt"
mount -t tmpfs tmpfs "$tree/tmp"
mount --rbind /dev "$tree/dev"
mount --rbind /proc "$tree/proc"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$tree/mnt/$2"; else : > "$tree/mnt/$2"; fi
    mount --bind "$1" "$tree/mnt/$2"
    shift 2
done
shift
exec chroot "$tree" "$@"
"""
MOUNT_POINTS = ("dev", "mnt", "proc", "tmp")
HINT = "run as root (or allow unprivileged user namespaces) and look at the message"


class Tools:
    """The tools tree at `tree`."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def run(self, *argv: str, binds: Mapping[str, Path], env: Mapping[str, str] | None = None, text: str = "") -> str:
        """Run `argv` in the tree with each of `binds` at /mnt/NAME and `text` as its input; return its output.

        Raises BuildError. Nothing else of the host is to be seen but /dev and /proc.
        """
        namespace = ["--mount", "--propagation", "private"]
        if os.geteuid() != 0:
            namespace.insert(0, "--map-root-user")
        pairs = [text for name, source in binds.items() for text in (str(source), name)]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", **(env or {})}
        command = ["unshare", *namespace, "sh", "-c", SCRIPT, "sh", str(self.tree), *pairs, "--", *argv]
        return run(command, hint=HINT, env=environment, text=text)
