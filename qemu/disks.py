"""Disks for a machine: sparse files that cost only what the guest writes, or files that exist already."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from qemu.errors import HarnessError

_RESERVE = 256 << 20  # must be free before a machine starts: a guest that meets ENOSPC stops in the middle of a write
_START, _SECTOR = 1 << 20, 512  # bytes before and after a partition, and of a sector


def cache() -> Path:
    """Return the folder for what may be large: ${XDG_CACHE_HOME:-~/.cache}/initd. /run and /tmp are memory on many
    hosts.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "initd"


@dataclass(frozen=True)
class Disk:
    """One more disk, as /dev/vdX in the guest.

    size: bytes of a new, empty disk that goes away with the machine; path: a raw image that exists and stays. Exactly
    one of them. serial: at most 20 characters, what /sys/block/vdX/serial says.
    """

    size: int = 0
    path: Path | None = None
    serial: str = ""
    read_only: bool = False

    def __post_init__(self) -> None:
        if (self.size > 0) == (self.path is not None):
            message = f"Disk: expected either size or path, found size={self.size}, path={self.path}"
            raise ValueError(message)

    def prepare(self, folder: Path, index: int) -> Path:
        """Return the file to give to QEMU, made in folder if need be."""
        if self.path is not None:
            return existing(self.path, "disk")
        path = folder / f"disk{index}.raw"
        path.touch()
        os.truncate(path, self.size)
        return path


def partitioned(path: Path, label: str, size: int) -> Disk:
    """Return a disk of `size` bytes with one GPT partition named `label` that holds an empty ext4; the file at `path`
    is made and stays. Raises HarnessError.
    """
    path.touch()
    os.truncate(path, size)
    table = f"label: gpt\nstart={_START // _SECTOR}, size={(size - 2 * _START) // _SECTOR}, name={label}\n"
    sfdisk = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(path)]
    mkfs = ["mkfs.ext4", "-q", "-F", "-E", f"offset={_START}", str(path), f"{(size - 2 * _START) >> 10}k"]
    for command, text in ((sfdisk, table), (mkfs, "")):
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise HarnessError(
                f"{command[0]} is not installed", "install it: apt-get install fdisk e2fsprogs"
            ) from None
        if done.returncode:
            raise HarnessError(f"{path}: {command[0]}: {done.stderr.strip()}")
    return Disk(path=path)


def existing(path: Path, what: str) -> Path:
    """Return path if it is a readable file; raise HarnessError naming it otherwise."""
    if not path.is_file() or not os.access(path, os.R_OK):
        message = f"{what} {path}: no such file, or not readable"
        raise HarnessError(message, "build the image first: make image")
    return path


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Make a folder that is this user's alone, and those above it. Raises HarnessError naming it."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok, mode=0o700)
    except OSError as error:
        hint = "set XDG_CACHE_HOME and XDG_RUNTIME_DIR to folders that you may write to"
        raise HarnessError(f"{path} cannot be made: {error}", hint) from None


def check_space(folder: Path) -> None:
    """Raise HarnessError if the file system of folder is nearly full."""
    free = shutil.disk_usage(folder).free
    if free < _RESERVE:
        message = f"{folder}: only {free >> 20} MiB free, {_RESERVE >> 20} MiB needed"
        raise HarnessError(message, "free some space there, or set XDG_CACHE_HOME to a larger disk")
