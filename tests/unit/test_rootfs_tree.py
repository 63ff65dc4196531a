"""The tree: the keep list decides, what is not closed is named, the initramfs is the bytes the kernel expects."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootfs import closed, initramfs, tree
from rootfs.pattern import KeepList
from rootfs.progress import BuildError

if TYPE_CHECKING:
    from pathlib import Path

    from rootfs.tools import Tools


def test_the_last_line_that_matches_decides() -> None:
    keep = KeepList(["lib/**", "!lib/*/test/**", "lib/a/test/needed.py"])
    assert keep.keeps("lib/a/x.py")
    assert not keep.keeps("lib/a/test/x.py")
    assert keep.keeps("lib/a/test/needed.py")
    assert not keep.keeps("bin/sh")


def test_a_star_stays_in_its_component_and_text_is_literal() -> None:
    keep = KeepList(["usr/*.so.1", "etc/a+b"])
    assert keep.keeps("usr/libc.so.1")
    assert not keep.keeps("usr/lib/libc.so.1")
    assert not keep.keeps("usr/libcxsox1")
    assert keep.keeps("etc/a+b")


def test_lines_that_keep_nothing_are_named() -> None:
    keep = KeepList(["usr/bin/mount", "usr/bin/mounts", "!usr/share/**"])
    keep.keeps("usr/bin/mount")
    assert keep.unused() == ["usr/bin/mounts"]


def test_pruning_drops_setuid_and_keeps_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "usr/bin").mkdir(parents=True)
    (source / "usr/bin/mount").write_text("x")
    (source / "usr/bin/mount").chmod(0o4755)
    (source / "usr/bin/sh").write_text("x")
    (source / "usr/bin/mnt").symlink_to("mount")
    tree.prune(source, tmp_path / "root", KeepList(["usr/bin/m*"]))
    assert sorted(path.name for path in (tmp_path / "root/usr/bin").iterdir()) == ["mnt", "mount"]
    assert stat.S_IMODE((tmp_path / "root/usr/bin/mount").stat().st_mode) == 0o755
    assert (tmp_path / "root/usr/bin/mnt").readlink().name == "mount"


def test_pruning_to_something_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(BuildError, match=r"keep\.txt: nothing matches usr/sbin/nft"):
        tree.prune(tmp_path / "source", tmp_path / "root", KeepList(["usr/sbin/nft"]))


class FakeTools:
    """Answers as readelf would."""

    def __init__(self, dynamic: str) -> None:
        self.dynamic = dynamic

    def run(self, *_argv: str, **_options: object) -> str:
        return self.dynamic


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    for folder in ("usr/bin", "usr/sbin", "usr/lib/x86_64-linux-gnu", "usr/lib64", "etc"):
        (path / folder).mkdir(parents=True)
    (path / "usr/bin/mount").write_bytes(b"\x7fELF")
    (path / "usr/lib/x86_64-linux-gnu/libc.so.6").write_bytes(b"\x7fELF")
    (path / "etc/hosts").symlink_to("/run/initd/etc/hosts")
    return path


def problems(root: Path, needed: str = "libc.so.6") -> list[str]:
    dynamic = f"File: /mnt/root/usr/bin/mount\n 0x01 (NEEDED) Shared library: [{needed}]\n"
    return closed.problems(root, cast("Tools", FakeTools(dynamic)))


def test_a_closed_tree_has_no_problems(root: Path) -> None:
    assert problems(root) == []


def test_setuid_files_are_problems(root: Path) -> None:
    (root / "usr/bin/mount").chmod(0o4755)
    assert problems(root) == ["usr/bin/mount: setuid or setgid"]


@pytest.mark.parametrize("name", ["sh", "bash", "busybox", "python3", "python3.13", "perl", "apt-get", "dpkg", "su"])
def test_shells_interpreters_and_package_managers_are_problems(root: Path, name: str) -> None:
    (root / "usr/bin" / name).write_bytes(b"")
    assert problems(root) == [f"usr/bin/{name}: forbidden"]


def test_scripts_are_problems(root: Path) -> None:
    (root / "usr/sbin/tool").write_bytes(b"#!/bin/sh\n")
    (root / "usr/sbin/tool").chmod(0o755)
    assert problems(root) == ["usr/sbin/tool: a script, and there is nothing to run it"]


def test_links_to_nowhere_or_outside_are_problems(root: Path) -> None:
    (root / "usr/bin/a").symlink_to("gone")
    (root / "usr/bin/b").symlink_to("../../../outside")
    assert [line.partition(":")[0] for line in problems(root)] == ["usr/bin/a", "usr/bin/b"]


def test_a_missing_library_names_who_needs_it(root: Path) -> None:
    assert problems(root, "libgone.so.1") == ["usr/bin/mount: needs libgone.so.1, which is not there"]


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/erofs.ko: kernel/lib/crc.ko kernel/crypto/base.ko\n"
        "kernel/lib/crc.ko: kernel/crypto/base.ko\nkernel/crypto/base.ko:\n"
        "kernel/net/virtio-net.ko: kernel/crypto/base.ko\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/drivers/nvme.ko\n")
    return tmp_path


def test_modules_come_after_what_they_need_and_once(modules: Path) -> None:
    order = initramfs.load_order(modules, ["erofs", "nvme", "virtio_net"])
    assert [path.name for path in order] == ["base.ko", "crc.ko", "erofs.ko", "virtio-net.ko"]


def test_a_module_that_the_kernel_lacks_is_named(modules: Path) -> None:
    with pytest.raises(BuildError, match="the kernel has no module gone"):
        initramfs.load_order(modules, ["gone"])


def unpack(archive: bytes) -> list[tuple[str, int, bytes]]:
    """What the kernel's unpacker would see."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], archive[start : start + fields[6]]))
        at = -(-(start + fields[6]) // 4) * 4


names = st.text("abc/", min_size=1, max_size=9)


@given(st.lists(st.tuples(names, st.sampled_from([0o100644, 0o40755]), st.binary(max_size=70))))
def test_a_cpio_archive_unpacks_to_what_went_in(entries: list[tuple[str, int, bytes]]) -> None:
    archive = initramfs.cpio(entries)
    assert unpack(archive) == entries
    assert archive == initramfs.cpio(entries)
