"""Rules that the mount table keeps, and the few lines that walk it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd import mounts, native
from initd.mounts import TABLE, Mount, after_var, mount_all, seed, unescape
from initd.native import MountFlag

if TYPE_CHECKING:
    from pathlib import Path

ROWS = (*TABLE, *after_var())
DEVICES = {"/dev", "/dev/pts"}  # the only ones in which device nodes work
PROGRAMS = {"/run", "/var", "/opt"}  # containerd's bundles, images and CNI plugins run from there
READ_ONLY = {"/sys/firmware/efi/efivars", "/var/log/initd"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.target)
def test_flags(row: Mount) -> None:
    assert row.flags & MountFlag.NOSUID
    assert bool(row.flags & MountFlag.NODEV) == (row.target not in DEVICES)
    assert bool(row.flags & MountFlag.NOEXEC) == (row.target not in PROGRAMS)
    assert bool(row.flags & MountFlag.RDONLY) == (row.target in READ_ONLY)


@pytest.mark.parametrize("row", [row for row in ROWS if row.source == "tmpfs"], ids=lambda row: row.target)
def test_no_tmpfs_may_fill_the_memory(row: Mount) -> None:
    assert "size=" in row.data


def test_each_target_stands_once_and_after_what_it_lies_on() -> None:
    targets = [row.target for row in ROWS]
    assert len(set(targets)) == len(targets)
    for index, target in enumerate(targets):
        assert not any(later.startswith(f"{target}/") for later in targets[:index])
    for target in ("/proc", "/sys", "/dev", "/run", "/sys/fs/cgroup", "/var"):
        assert next(row for row in ROWS if row.target == target).needed


@pytest.mark.parametrize("rows", [mounts.VAR_DIRECTORIES, mounts.RUN_DIRECTORIES], ids=["var", "run"])
def test_parents_are_made_before_children(rows: tuple[tuple[str, int], ...]) -> None:
    made = {"/var", "/run"}
    for path, _ in rows:
        assert os.path.dirname(path) in made
        made.add(path)


def test_what_is_not_needed_may_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_source: str, target: str, kind: str, *_rest: object) -> None:
        number = errno.ENODEV if kind == "missing" else errno.EPERM
        raise OSError(number, os.strerror(number), target)

    monkeypatch.setattr(native, "mount", refuse)
    optional = Mount(str(tmp_path), "x", "missing", MountFlag.NOSUID, needed=False)
    refused = optional._replace(type="refused")
    nowhere = optional._replace(target=str(tmp_path / "none"))
    assert mount_all((optional, refused, nowhere)) == [f"{tmp_path}: Operation not permitted"]
    with pytest.raises(PermissionError):
        mount_all((refused._replace(needed=True),))


def test_what_is_mounted_already_is_only_given_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(native, "mount", lambda *call: calls.append(call))
    row = Mount("/proc", "proc", "proc", mounts.SEALED)
    mount_all((row,))
    assert calls == [("", "/proc", "", mounts.SEALED | MountFlag.REMOUNT | MountFlag.BIND)]


def test_a_bind_mount_is_given_its_flags_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(native, "mount", lambda *call: calls.append(call))
    row = Mount(str(tmp_path), "/source", "", mounts.SEALED | MountFlag.BIND)
    mount_all((row,))
    assert [call[0] for call in calls] == ["/source", ""]
    assert calls[1] == ("", str(tmp_path), "", mounts.SEALED | MountFlag.REMOUNT | MountFlag.BIND)


def test_links_and_seeds(tmp_path: Path) -> None:
    factory, target = tmp_path / "factory", tmp_path / "target"
    (factory / "manifests").mkdir(parents=True)
    (factory / "manifests/pod.json").write_text("{}")
    (factory / "link").symlink_to("/etc/passwd")
    target.mkdir()
    seed(str(factory), str(target))
    assert (target / "manifests/pod.json").read_text() == "{}"
    assert not (target / "link").is_symlink()
    seed(str(tmp_path / "none"), str(target))
    rows = (("/proc/self/fd", str(tmp_path / "fd")),)
    mounts.make_links(rows)
    mounts.make_links(rows)
    assert os.readlink(tmp_path / "fd") == "/proc/self/fd"


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    path = str(tmp_path / "tmp")
    before = os.umask(0o077)
    try:
        mounts.make_directories(((path, 0o1777), (path, 0o1777)))
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o7777 == 0o1777


@given(st.text(st.sampled_from(' \t\n#\\04013a"')))
def test_paths_of_mountinfo_are_read_back(path: str) -> None:
    escaped = "".join(f"\\{ord(character):03o}" if character in " \t\n#\\" else character for character in path)
    assert unescape(escaped) == path
