"""The cgroup tree: rules of the table, and what is written where (in a plain directory here)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from initd import cgroups, services
from initd.cgroups import TREE

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = dict(TREE)
FILES = (
    "cpu.weight",
    "cgroup.procs",
    "cgroup.subtree_control",
    "cgroup.kill",
    "memory.min",
    "memory.low",
    "memory.max",
)


@pytest.mark.parametrize("path", [path for path, settings in TREE if "memory.min" in settings])
def test_every_level_above_a_protected_one_is_protected_as_much(path: str) -> None:
    parent = os.path.dirname(path)
    while parent:
        below = [values.get("memory.min", 0) for child, values in TREE if os.path.dirname(child) == parent]
        assert int(SETTINGS[parent]["memory.min"]) >= sum(map(int, below))
        parent = os.path.dirname(parent)


def test_the_tree_has_what_the_services_and_the_design_want() -> None:
    made: set[str] = set()
    for path, _ in TREE:
        assert os.path.dirname(path) in made | {""}
        made.add(path)
    assert {spec.cgroup for spec in services.SERVICES} <= made
    assert "shims" in made  # containerd puts shims only into one that is there
    assert not SETTINGS["initd"].keys() - {"memory.min"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory that looks like a cgroup2 mount whose files are there."""
    for path in ("", *SETTINGS, "worker"):
        (tmp_path / path).mkdir(exist_ok=True)
        for name in FILES:
            (tmp_path / path / name).touch()
    (tmp_path / "cgroup.controllers").write_text("cpu memory rdma pids\n")
    return tmp_path


def test_making_the_tree(root: Path) -> None:
    assert cgroups.make_tree(str(root)) == []
    assert (root / "initd/pid1/cgroup.procs").read_text() == "0"
    assert (root / "runtime/memory.min").read_text() == str(SETTINGS["runtime"]["memory.min"])


def test_every_controller_there_is_is_enabled_on_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(cgroups, "_write", lambda path, text: written.append((os.path.relpath(path, root), text)))
    cgroups.make_tree(str(root))
    wanted = ["+cpu", "+memory", "+pids"]
    assert [text for path, text in written if path == "cgroup.subtree_control"] == wanted
    assert [text for path, text in written if path == "initd/cgroup.subtree_control"] == wanted
    assert written[0] == ("initd/pid1/cgroup.procs", "0"), "PID 1 leaves before it charges anything to the root"


def test_a_setting_that_is_refused_is_told_and_the_rest_goes_on(root: Path) -> None:
    (root / "runtime/memory.min").unlink()
    (root / "runtime/memory.min").mkdir()
    (line,) = cgroups.make_tree(str(root))
    assert line == f"runtime/memory.min={SETTINGS['runtime']['memory.min']}: Is a directory"
    assert (root / "kubelet/memory.low").read_text()
    assert cgroups.configure("worker", {"memory.max": 64, "no.such": 1}, str(root)) == [
        "worker/no.such=1: No such file or directory"
    ]
    assert (root / "worker/memory.max").read_text() == "64"


def test_a_cgroup_made_anew_has_its_settings_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(cgroups, "_write", lambda path, text: written.append((os.path.relpath(path, tmp_path), text)))
    (tmp_path / "kubelet").mkdir()
    assert cgroups.renew("kubelet", {"pids.max": 9}, str(tmp_path)) == []
    assert written == [("kubelet/memory.low", str(SETTINGS["kubelet"]["memory.low"])), ("kubelet/pids.max", "9")]
    cgroups.renew("fresh", {}, str(tmp_path))
    assert (tmp_path / "fresh").is_dir()
    (tmp_path / "kubelet/child/empty").mkdir(parents=True)
    cgroups.renew("kubelet", {}, str(tmp_path))
    assert not (tmp_path / "kubelet/child").exists()
    (tmp_path / "kubelet/child").mkdir()
    (tmp_path / "kubelet/child/process").touch()
    with pytest.raises(OSError, match="not empty"):
        cgroups.renew("kubelet", {}, str(tmp_path))


def test_what_is_in_a_cgroup(root: Path) -> None:
    (root / "shims/pod").mkdir()
    (root / "shims/cgroup.procs").write_text("12\n7\n")
    (root / "shims/pod/cgroup.procs").write_text("99\n")
    assert sorted(cgroups.processes("shims", str(root))) == [7, 12, 99]
    assert cgroups.processes("gone", str(root)) == []
    assert not cgroups.populated("gone", str(root))
    (root / "shims/cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert cgroups.populated("shims", str(root))
    (root / "shims/memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert cgroups.oom_kills("shims", str(root)) == 1
    assert cgroups.oom_kills("gone", str(root)) == 0


def test_killing(root: Path) -> None:
    cgroups.kill("shims", str(root))
    assert (root / "shims/cgroup.kill").read_text() == "1"
    cgroups.kill("gone", str(root))
