"""The partition that keeps who the node is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from initd import boot, mounts, native, state
from initd.config.schema import ClusterConfig, Config
from initd.node import Node
from initd.phases import Skipped
from tests.unit.cluster_support import TOKEN, pem, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def test_the_partition_is_found_by_its_name(tmp_path: Path) -> None:
    assert state.find(str(tmp_path)) is None
    for device, label in (("vda", ""), ("vda1", "initd-root-a"), ("vda2", "INITD-STATE-2"), ("vdb1", "INITD-STATE")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "uevent").write_text(f"DEVNAME={device}\nPARTNAME={label}\n")
    assert state.find(str(tmp_path)) == "/dev/vdb1"


def test_of_several_none_is_taken_and_their_names_are_the_reason(
    tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("vdc1", "vdb1"):
        (tmp_path / device).mkdir()
        (tmp_path / device / "uevent").write_text("PARTNAME=INITD-STATE\n")
    found = state.find
    monkeypatch.setattr(state, "find", lambda: found(str(tmp_path)))
    with pytest.raises(OSError, match="2 partitions INITD-STATE: vdb1, vdc1"):
        _ = boot.keep_identity(node)
    assert node.status()["identity"] == "ephemeral: 2 partitions INITD-STATE: vdb1, vdc1"


def test_without_a_partition_there_is_nothing_to_do(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "find", lambda: None)
    with pytest.raises(Skipped, match="no partition INITD-STATE"):
        _ = boot.keep_identity(node)
    assert node.status()["identity"] == "ephemeral: no partition INITD-STATE"


@pytest.fixture
def node() -> Node:
    """One whose name is decided."""
    node = Node()
    node.name, node.config = "node-1", Config()
    return node


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """What the child mounts of the partition /dev/vdb1, one after the other; nothing is. It is reaped at last."""
    log, spawn, children = tmp_path / "log", native.spawn, list[int]()

    def noted(wanted: native.Spawn) -> native.Child:
        child = spawn(wanted)
        children.append(child.pid)
        return child

    monkeypatch.setattr(native, "spawn", noted)
    log.touch()

    def mount(source: str, target: str, *_: object) -> None:
        with log.open("a") as file:
            file.write(f"{source} {target}\n".replace(str(tmp_path), ""))

    monkeypatch.setattr(native, "mount", mount)
    monkeypatch.setattr(mounts, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(mounts, "KUBELET_PKI", str(tmp_path / "pki"))
    monkeypatch.setattr(state, "find", lambda: "/dev/vdb1")
    yield lambda: log.read_text().splitlines()
    for pid in children:
        os.waitpid(pid, 0)


def keep(node: Node) -> str:
    """Run the phase; what the node says of its identity then."""

    async def run() -> None:
        await boot.keep_identity(node)

    with suppress(OSError):
        asyncio.run(run())
    return node.status()["identity"]


def test_its_folder_of_this_node_is_the_kubelets(asked: Callable[[], list[str]], node: Node, tmp_path: Path) -> None:
    assert keep(node) == "persistent"
    disk, keys, _flags = asked()
    folder = f"state/kubelet-pki/{state.owner('node-1', Config())}"
    assert (disk, keys) == ("/dev/vdb1 /state", f"/{folder} /pki")
    assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700


def test_what_is_wrong_with_it_is_said(
    asked: Callable[[], list[str]], node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount(*_: object) -> None:
        raise OSError(22, "Invalid argument", "/dev/vdb1")

    monkeypatch.setattr(native, "mount", mount)
    assert node.status()["identity"] == "ephemeral"
    assert keep(node) == "ephemeral: [Errno 22] Invalid argument: '/dev/vdb1'"
    assert asked() == []


def test_a_disk_that_does_not_answer_is_waited_for_so_long_and_then_left_alone(
    asked: Callable[[], list[str]], node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk, over = tmp_path / "disk", tmp_path / "over"
    os.mkfifo(disk)
    os.mkfifo(over)
    monkeypatch.setattr(native, "mount", lambda *_: disk.read_bytes())  # until the test has opened and closed it
    monkeypatch.setattr(boot, "STATE_SECONDS", 0.05)
    real = mounts.make_directories

    def make(rows: tuple[tuple[str, int], ...]) -> None:
        real(rows)
        if rows[0][0].endswith(state.owner("node-1", Config())):
            over.write_text("mounted, late")

    monkeypatch.setattr(mounts, "make_directories", make)
    assert keep(node) == "ephemeral: /dev/vdb1 does not answer"
    disk.write_bytes(b"")
    assert over.read_text() == "mounted, late"
    assert asked() == []


def test_a_child_that_dies_is_no_success(
    asked: Callable[[], list[str]], node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "on_state", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert keep(node) == "ephemeral: /dev/vdb1: not mounted, and nobody knows why"
    monkeypatch.setattr(mounts, "on_state", lambda *_: 1 // 0)
    assert keep(node) == "ephemeral: /dev/vdb1: not mounted, and nobody knows why"
    assert asked() == []


def test_who_it_is_depends_on_the_name_and_on_the_clusters_authority_alone() -> None:
    def in_cluster(name: str, *, token: str = TOKEN, **changes: str) -> str:
        text = table(token=token)
        text["clusters"][0]["cluster"] |= changes
        return state.owner(name, Config(cluster=ClusterConfig(json.dumps(text))))

    mine = in_cluster("node-1")
    assert in_cluster("node-1", token=TOKEN[::-1], server="https://192.0.2.9:6443") == mine
    authority = pem("TRUSTED CERTIFICATE")
    others = {
        in_cluster("node-2"),
        in_cluster("node-1", **{"certificate-authority-data": authority}),
        state.owner("node-1", Config()),
    }
    assert len(others | {mine}) == 4
