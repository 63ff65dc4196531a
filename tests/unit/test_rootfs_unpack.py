"""Unpacking: the tree holds the packages' files and nothing of mmdebstrap, apt or this host; hashes are enforced."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from rootfs import debian
from rootfs.cache import Cache
from rootfs.debian import Package
from rootfs.progress import BuildError, Progress
from rootfs.unpack import index, unpack

if TYPE_CHECKING:
    from pathlib import Path

MERGED = {"bin", "sbin", "lib", "lib64"}
VERSION = "1:2.0+b1"


def make_deb(folder: Path, name: str, files: dict[str, str], depends: str = "") -> Package:
    """Build a .deb whose maintainer scripts leave a mark beside it, and lock it."""
    source = folder / "source" / name
    control = f"Package: {name}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: n\nDescription: n\n{depends}"
    for path, text in {"DEBIAN/control": control, **files}.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    for script in ("preinst", "postinst"):
        (source / "DEBIAN" / script).write_text(f"#!/bin/sh\n: > {folder}/{script}-ran\n")
        (source / "DEBIAN" / script).chmod(0o755)
    package = Package(name, VERSION, "", f"pool/main/{name}_2.0_all.deb")
    argv = ["dpkg-deb", "--root-owner-group", "--build", str(source), str(folder / package.file)]
    subprocess.run(argv, check=True, capture_output=True)
    shutil.rmtree(folder / "source")
    digest = hashlib.sha256((folder / package.file).read_bytes()).hexdigest()
    return Package(name, VERSION, digest, package.filename)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the .debs are: a path that a line of sources.list cannot hold as it is."""
    path = tmp_path / "a folder"
    path.mkdir()
    return path


def test_a_tree_is_the_packages_files_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    own = {"usr/bin/one": "1", "etc/one.conf": "2", "etc/apt/apt.conf.d/one": "3", "var/lib/one/state": "4"}
    packages = [
        make_deb(folder, "one", own, depends="Depends: not-in-the-lock\n"),
        make_deb(folder, "two", {"usr/lib/two": "5"}),
    ]
    tree = tmp_path / "tree"
    before = sorted(folder.iterdir())
    unpack(packages, folder, tree)
    found = {path.relative_to(tree).as_posix() for path in tree.rglob("*")}
    assert found == MERGED | {"usr", "usr/bin", "usr/bin/one", "usr/lib", "usr/lib/two", "etc", "etc/one.conf"}
    assert {name: os.readlink(tree / name) for name in MERGED} == {name: f"usr/{name}" for name in MERGED}
    assert (tree / "bin/one").read_text() == "1"
    assert sorted(folder.iterdir()) == before  # no mark of a maintainer script, no index left


def test_only_what_is_locked_is_unpacked(folder: Path, tmp_path: Path) -> None:
    package = make_deb(folder, "one", {"usr/one": ""})
    make_deb(folder, "two", {"usr/two": ""})
    unpack([package], folder, tmp_path / "tree")
    assert {path.name for path in (tmp_path / "tree/usr").iterdir()} == {"one"}


def test_apt_refuses_a_package_that_is_not_what_the_lock_says(folder: Path, tmp_path: Path) -> None:
    package = make_deb(folder, "one", {"usr/one": "good"})
    make_deb(folder, "one", {"usr/one": "evil"})
    with pytest.raises(BuildError, match="mmdebstrap"):
        unpack([package], folder, tmp_path / "tree")
    assert not (tmp_path / "tree/usr/one").exists()


def test_the_index_says_of_each_package_what_the_lock_says(folder: Path) -> None:
    package = make_deb(folder, "one", {})
    size = (folder / "one_1%3a2.0+b1_all.deb").stat().st_size
    assert index([package], folder) == (
        f"Package: one\nVersion: 1:2.0+b1\nArchitecture: all\nFilename: one_1%3a2.0+b1_all.deb\nSize: {size}\n"
        f"SHA256: {package.sha256}\n"
    )


def test_a_machine_without_mmdebstrap_is_told_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_deb(folder, "one", {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="mmdebstrap is missing") as caught:
        unpack([package], folder, tmp_path / "tree")
    assert "make" in caught.value.hint
    assert "mmdebstrap" in debian.read_list(debian.HERE / "packages/host.txt")


def test_a_damaged_package_is_removed_so_that_the_next_build_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = debian.Archive(Cache(Progress(), tmp_path))
    package = make_deb(archive.folder, "one", {"usr/one": ""})
    monkeypatch.setattr(archive, "packages", lambda _tree: [package])
    deb = archive.folder / package.file
    deb.write_bytes(deb.read_bytes()[:-1])
    with pytest.raises(BuildError, match="is damaged and was removed"):
        archive.unpack("root", tmp_path / "tree")
    assert not deb.exists()
    assert not (tmp_path / "tree").exists()
