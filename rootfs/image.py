"""The disk: the root tree as a compressed erofs in one partition of a GPT. No loop device, no mount, no clock."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rootfs.tools import Tools

PARTITION = "initd-root-a"
ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"  # x86-64 root, UAPI Discoverable Partitions Specification
# Fixed, so that equal trees give equal disks.
DISK_UUID = "0B0A2C6E-6B1D-4F0E-9E7C-1A2B3C4D5E01"
PARTITION_UUID = "0B0A2C6E-6B1D-4F0E-9E7C-1A2B3C4D5E02"
EROFS_UUID = "0B0A2C6E-6B1D-4F0E-9E7C-1A2B3C4D5E03"
# Chosen by measurement, see the README: of what Debian's kernel reads, the smallest that is written in seconds; lzma is
# smaller and costs each boot seconds. What PID 1 itself waits for, before containerd's exec, stays plain.
EROFS_OPTIONS = ("-zzstd,level=3", "-C65536", "-Efragments,ztailpacking")
PLAIN = (
    "usr/sbin/init$",
    "usr/lib/initd/python/(initd|msgpack)/",
    r"usr/lib/x86_64-linux-gnu/(ld-linux-x86-64|libc|libexpat|libm|libz)\.so",
    r"usr/lib/python3\.13/([^/]*|collections/.*|encodings/.*|importlib/.*|re/.*)\.pyc$",
)
# What `python -m rootfs measure` compares: options and plain paths.
TRIALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "lz4hc": (("-zlz4hc",), ()),
    "zstd": (("-zzstd,level=3", "-C65536"), ()),
    "zstd-fragments": (EROFS_OPTIONS, ()),
    "lzma-fragments": (("-zlzma", *EROFS_OPTIONS[1:]), ()),
    "lzma-chosen": (("-zlzma", *EROFS_OPTIONS[1:]), PLAIN),
    "chosen": (EROFS_OPTIONS, PLAIN),
}
MEBIBYTE = 1 << 20
SECTOR = 512


def make_disk(
    tree: Path, disk: Path, tools: Tools, options: tuple[str, ...] = EROFS_OPTIONS, plain: tuple[str, ...] = PLAIN
) -> None:
    """Write the erofs of `tree` into the root partition of the GPT image `disk`, which is made.

    `options` are mkfs.erofs's, `plain` the regular expressions of paths that are not compressed.
    """
    disk.touch()
    binds = {"tree": tree, "out": disk.parent}
    erofs = disk.parent / "root.erofs"
    hints = disk.parent / "hints"
    hints.write_text("".join(f"0 ^{pattern}\n" for pattern in plain))  # clusters of 0 bytes: not compressed
    fixed = ("-x-1", "-T0", f"-U{EROFS_UUID}", "--all-root", f"--workers={os.cpu_count()}")
    tools.run(
        "mkfs.erofs",
        "--quiet",
        *fixed,
        *options,
        "--compress-hints=/mnt/out/hints",
        f"/mnt/out/{erofs.name}",
        "/mnt/tree",
        binds=binds,
    )
    size = erofs.stat().st_size
    with disk.open("wb") as target, erofs.open("rb") as source:
        target.truncate((size // MEBIBYTE + 3) * MEBIBYTE)
        target.seek(MEBIBYTE)
        shutil.copyfileobj(source, target, MEBIBYTE)
    for scratch in (erofs, hints):
        scratch.unlink()
    start, sectors = MEBIBYTE // SECTOR, -(-size // SECTOR)
    row = f"start={start}, size={sectors}, type={ROOT_TYPE}, uuid={PARTITION_UUID}, name={PARTITION}"
    table = f"label: gpt\nlabel-id: {DISK_UUID}\n{row}\n"
    sfdisk = ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel")
    tools.run(*sfdisk, f"/mnt/out/{disk.name}", binds=binds, text=table)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def manifest(
    tree: Path, files: Iterable[Path], packages: dict[str, str], versions: dict[str, str], *, moved_on: bool
) -> dict[str, Any]:
    """What the image holds: versions, bytes by part before compression, packages, hashes of `files`."""
    parts = ("usr/bin", "usr/sbin", *(f"usr/lib/{name}" for name in ("cni", "initd", "modules", "python3.13")))
    return {
        "versions": versions,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files},
        "tree": {"all": _size_of(tree), **{part: _size_of(tree / part) for part in parts}},
        "mirror_moved_on": moved_on,
        "packages": packages,
    }


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, keys sorted."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
