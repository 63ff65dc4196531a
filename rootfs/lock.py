"""Renews the locks: newest Debian 13 packages, Python wheels and Go sums that what is asked for stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootfs import debian

if TYPE_CHECKING:
    from rootfs.cache import Cache


def renew(cache: Cache) -> None:
    """Rewrite every file in rootfs/locks."""
    apt = debian.Apt(cache.root / "apt")
    with cache.progress.step("lock debian", "the newest Debian 13 packages", 10):
        for tree in debian.TREES:
            debian.write_lock(tree, apt.resolve(debian.read_list(debian.HERE / f"packages/{tree}.txt")))
