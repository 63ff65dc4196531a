"""The initramfs: stage 1 and the few modules that reach the root."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs.debian import read_list
from rootfs.progress import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent


def load_order(modules: Path, wanted: Iterable[str]) -> list[Path]:
    """Files below `modules` (a /lib/modules/VERSION with modules.dep) to load for `wanted`, each after what it needs.

    What is built into the kernel needs no file. Raises BuildError for a name that the kernel does not have.
    """
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).name.removesuffix(".ko").replace("-", "_"): path for path in needs}
    builtin = {
        Path(line).name.removesuffix(".ko").replace("-", "_")
        for line in (modules / "modules.builtin").read_text().split()
    }
    order: dict[str, None] = {}
    for name in wanted:
        if name in by_name:
            # modules.dep names the nearest first, the kernel wants the farthest first.
            order.update(dict.fromkeys([*reversed(needs[by_name[name]]), by_name[name]]))
        elif name not in builtin:
            raise BuildError(f"modules.txt: the kernel has no module {name}", "mend rootfs/modules.txt")
    return [modules / path for path in order]


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A newc archive (the kernel's buffer-format.rst) of (name, mode, content), all of root and of 1970."""
    parts = []
    for inode, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        parts += [header, bytes(-len(header) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def build(output: Path, stage1: Path, modules: Path) -> None:
    """Write the initramfs to `output`. It is not compressed: 2 MB unpack faster than they decompress."""
    files = load_order(modules, read_list(HERE / "modules.txt"))
    loop = load_order(modules, ["loop"])  # stage 1 loads it for a root that is a file
    names = "".join(f"{path.name}\n" for path in files)
    entries = [
        ("dev", stat.S_IFDIR | 0o755, b""),
        ("init", stat.S_IFREG | 0o755, stage1.read_bytes()),
        ("modules", stat.S_IFDIR | 0o755, b""),
        ("modules/load", stat.S_IFREG | 0o644, names.encode()),
        *((f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in [*files, *loop]),
    ]
    output.write_bytes(cpio(entries))
