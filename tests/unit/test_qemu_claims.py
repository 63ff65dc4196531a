"""Names that are taken: by one at a time, free again after a kill, and what a killed one left is swept."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from qemu import claims, vms
from qemu.cluster import Cluster
from qemu.errors import HarnessError
from qemu.machine import Machine, disks_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_name_is_one_holders_until_its_cleanup(tmp_path: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        assert claims.claim(tmp_path, "a", first)
        assert not claims.claim(tmp_path, "a", second)
        assert claims.claim(tmp_path, "b", second)
        first.close()
        assert claims.claim(tmp_path, "a", second)
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_holds_is_swept(tmp_path: Path) -> None:
    for name in ("killed", "held", "unknown"):
        (tmp_path / name).mkdir()
    (tmp_path / ".killed.lock").touch()
    swept: list[str] = []
    with ExitStack() as holder:
        assert claims.claim(tmp_path, "held", holder)
        claims.sweep(tmp_path, swept.append)
    assert swept == ["killed"]
    assert not (tmp_path / ".killed.lock").exists()


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / ".a.lock").mkdir()
    with pytest.raises(HarnessError, match=r"\.a\.lock cannot be opened"), ExitStack() as cleanup:
        claims.claim(tmp_path, "a", cleanup)


def test_a_second_cluster_of_a_name_leaves_the_first_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qemu.cluster._built", lambda: (tmp_path, tmp_path))
    first = Cluster("same")
    first._claim()
    (first.folder / "etcd").touch()
    with pytest.raises(HarnessError, match="a cluster named same runs already"):
        Cluster("same").start()
    assert (first.folder / "etcd").exists()
    first.kill()
    assert list(first.folder.parent.iterdir()) == []


def test_a_cluster_sweeps_others_that_were_killed() -> None:
    cluster = Cluster("next")
    killed = cluster.folder.parent / "killed"
    killed.mkdir(parents=True)
    killed.with_name(".killed.lock").touch()
    egress = cluster._claim()
    assert sorted(path.name for path in killed.parent.iterdir()) == [".next.lock", "next"]
    assert len(os.fsencode(egress)) < len(os.fsencode(vms.directory() / "next-node-1/api.sock"))
    cluster.kill()


def test_a_machine_sweeps_others_that_were_killed() -> None:
    folders = [vms.directory() / "killed", disks_folder("killed"), vms.directory() / "live", disks_folder("live")]
    for folder in folders:
        folder.mkdir(parents=True)
    (vms.directory() / ".killed.lock").touch()
    with (vms.directory() / ".live.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machine = Machine("next")
        machine._claim()
    assert [folder.exists() for folder in folders] == [False, False, True, True]
    machine.kill()
