"""Renews the locks: the newest Debian packages and Python wheels for the lists in rootfs/packages, and the Go sums.

The versions of Kubernetes, containerd, runc and the plugins are the project's decision: they are written in go.mod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootfs import debian, golang, python

if TYPE_CHECKING:
    from rootfs.cache import Cache

HOST_PYTHONS = ("3.11", "3.12", "3.13")


def renew(cache: Cache) -> None:
    """Rewrite rootfs/locks and the go.sum files."""
    apt = debian.Apt(cache.root / "apt")
    with cache.progress.step("lock", "the newest Debian 13 packages", 5):
        for tree in debian.TREES:
            debian.write_lock(tree, apt.resolve(debian.read_list(debian.HERE / f"packages/{tree}.txt")))
    with cache.progress.step("lock", "the newest Python wheels", 30):
        for name, versions in (("python", (python.IMAGE_PYTHON,)), ("host-python", HOST_PYTHONS)):
            lock = python.resolve(debian.HERE / f"packages/{name}.txt", versions)
            (debian.HERE / f"locks/{name}.txt").write_text(lock)
    with cache.progress.step("lock", "sums of the Go modules", 30):
        golang.tidy(cache)
