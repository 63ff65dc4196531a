"""What a machine boots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qemu.errors import HarnessError

if TYPE_CHECKING:
    from pathlib import Path


class Bootable(Protocol):
    """What a machine boots; rootfs.build.Image is one."""

    @property
    def kernel(self) -> Path: ...
    @property
    def initramfs(self) -> Path | None: ...
    @property
    def disk(self) -> Path | None: ...


@dataclass(frozen=True)
class Files:
    """A kernel, and what else it needs, from explicit paths."""

    kernel: Path
    initramfs: Path | None = None
    disk: Path | None = None


def built() -> Bootable:
    """Return the image of this tree, built if it is not in the cache. Raises HarnessError."""
    try:
        from rootfs import build  # noqa: PLC0415 whoever gives an image needs none of it
        from rootfs.progress import BuildError, Progress  # noqa: PLC0415
    except ModuleNotFoundError:
        raise HarnessError("no image is installed", "give one (--kernel FILE), or use a clone") from None
    try:
        return build.image(Progress())
    except BuildError as error:
        raise HarnessError(error.message, error.hint) from error
