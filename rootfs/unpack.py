"""Makes a tree of verified Debian packages: mmdebstrap unpacks them, and no maintainer script runs."""

from __future__ import annotations

import os
import tempfile
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs.cache import remove, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rootfs.debian import Package

# What mmdebstrap and apt leave: some of it is this host's, some differs from version to version, no tree needs any.
LEFTOVERS = ("dev", "etc/apt", "etc/dpkg", "etc/fstab", "etc/hostname", "etc/resolv.conf", "tmp", "var")
MERGED = ("bin", "sbin", "lib", "lib64")  # links into /usr; base-files would bring them, but no package depends on it


def index(packages: Sequence[Package], folder: Path) -> str:
    """The Packages file of a flat archive (sources.list(5)): `packages`, whose .debs lie in `folder`.

    It names no dependencies: a lock is closed under them, and apt is to take what the lock says and nothing else.
    """
    return "\n".join(
        f"Package: {package.name}\nVersion: {package.version}\nArchitecture: {package.architecture}\n"
        f"Filename: {package.file}\nSize: {(folder / package.file).stat().st_size}\nSHA256: {package.sha256}\n"
        for package in packages
    )


def unpack(packages: Sequence[Package], folder: Path, target: Path) -> None:
    """Unpack the .debs of `packages`, which lie in `folder`, into `target`, which is made.

    apt compares each with its SHA-256. Raises BuildError when one differs or the disk is full.
    """
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="index-", dir=folder) as scratch:
        Path(scratch, "Packages").write_text(index(packages, folder))
        run(
            [
                "mmdebstrap",
                "--variant=extract",
                # The same for root and for any user: no mounts, no subordinate ids whose files nobody can remove. What
                # is dangerous in this mode is that maintainer scripts run on the host, and `extract` runs none.
                "--mode=chrootless",
                "--format=directory",
                "--skip=cleanup",  # which would run apt with the packages' own configuration; LEFTOVERS go below
                "--architectures=amd64",
                '--aptopt=APT::Sandbox::User "root"',  # root's cache is no place that the user _apt can read
                f"--include={','.join(f'{package.name}={package.version}' for package in packages)}",
                "",
                str(target),
                f"deb [trusted=yes] copy:{urllib.parse.quote(str(folder))} {Path(scratch).name}/",
            ],
            hint="look at the message; is the disk full?",
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    for name in LEFTOVERS:
        remove(target / name)
    for name in MERGED:
        if not (target / name).is_symlink():
            (target / name).symlink_to(f"usr/{name}")
