"""Proves of a finished tree that it is closed: nothing that could run others' code, and nothing missing."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs.progress import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootfs.tools import Tools

FORBIDDEN = re.compile(
    r"(ba|da|k|z|a|tc|c)?sh|busybox|toybox|perl.*|python.*|apt.*|dpkg.*|su|sudo|login|agetty|sshd?|ld\.so|ctr|crictl"
)
PROGRAM_PATHS = ("usr/bin", "usr/sbin", "usr/lib/cni", "usr/libexec")
LIBRARY_PATHS = ("usr/lib/x86_64-linux-gnu", "usr/lib64")
AT_RUN_TIME = ("/run/", "/proc/")  # links into these resolve only on a running node


def _entries(root: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    for parent, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(parent, name)
            yield path.relative_to(root).as_posix(), path, path.lstat()


def _resolves(root: Path, path: Path) -> bool:
    text = os.readlink(path)
    if text.startswith(AT_RUN_TIME):
        return True
    target = Path(os.path.normpath(root / text[1:] if text.startswith("/") else path.parent / text))
    return target.is_relative_to(root) and (target.exists() or target.is_symlink())


def problems(root: Path, tools: Tools) -> list[str]:
    """What is wrong with the tree at `root`, one line each."""
    found = []
    elves = []
    for name, path, status in _entries(root):
        if stat.S_ISLNK(status.st_mode):
            if not _resolves(root, path):
                found.append(f"{name}: link to {os.readlink(path)}, which is not there")
        elif status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            found.append(f"{name}: setuid or setgid")
        elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            found.append(f"{name}: neither file, directory nor link")
        elif stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                magic = file.read(4)
            if magic == b"\x7fELF" and not name.endswith(".ko"):
                elves.append(name)
            elif magic.startswith(b"#!") and status.st_mode & stat.S_IXUSR:
                found.append(f"{name}: a script, and there is nothing to run it")
        if name.rpartition("/")[0] in PROGRAM_PATHS and FORBIDDEN.fullmatch(path.name):
            found.append(f"{name}: forbidden")
    return sorted(found) + _missing_libraries(root, elves, tools)


def _missing_libraries(root: Path, elves: list[str], tools: Tools) -> list[str]:
    present = {path.name for folder in LIBRARY_PATHS for path in (root / folder).iterdir()}
    paths = [f"/mnt/root/{name}" for name in elves]
    dynamic = tools.run("readelf", "--dynamic", *paths, binds={"root": root})
    found = []
    current = elves[0] if len(elves) == 1 else ""
    for line in dynamic.splitlines():
        if line.startswith("File: "):
            current = line.removeprefix("File: /mnt/root/")
        elif (match := re.search(r"\(NEEDED\).*\[(.*)\]", line)) and match[1] not in present:
            found.append(f"{current}: needs {match[1]}, which is not there")
    return found


def require(root: Path, tools: Tools) -> None:
    """Raise BuildError unless the tree at `root` is closed."""
    if lines := problems(root, tools):
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise BuildError(f"the root tree is not closed: {shown}", "mend rootfs/keep.txt")
