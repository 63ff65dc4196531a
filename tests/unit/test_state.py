"""The partition that keeps who the node is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from initd import boot, mounts, native, state
from initd.node import Node
from initd.phases import Skipped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_partition_is_found_by_its_name(tmp_path: Path) -> None:
    assert state.find(str(tmp_path)) is None
    for device, label in (("vda", ""), ("vda1", "initd-root-a"), ("vda2", "INITD-STATE-2"), ("vdb1", "INITD-STATE")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "uevent").write_text(f"DEVNAME={device}\nPARTNAME={label}\n")
    assert state.find(str(tmp_path)) == "/dev/vdb1"


def test_of_several_none_is_taken_and_their_names_are_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("vdc1", "vdb1"):
        (tmp_path / device).mkdir()
        (tmp_path / device / "uevent").write_text("PARTNAME=INITD-STATE\n")
    found = state.find
    monkeypatch.setattr(state, "find", lambda: found(str(tmp_path)))
    node = Node()
    with pytest.raises(OSError, match="2 partitions INITD-STATE: vdb1, vdc1"):
        boot.keep_identity(node)
    assert node.status()["identity"] == "ephemeral: 2 partitions INITD-STATE: vdb1, vdc1"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """What the child mounts, one after the other; nothing is."""
    log = tmp_path / "log"
    log.touch()

    def mount(source: str, target: str, *_: object) -> None:
        with log.open("a") as file:
            file.write(f"{source} {target.removeprefix(str(tmp_path))}\n")

    monkeypatch.setattr(native, "mount", mount)
    monkeypatch.setattr(mounts, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(mounts, "KEYS", str(tmp_path / "pki"))
    return lambda: log.read_text().splitlines()


def test_its_folder_is_the_kubelets(asked: Callable[[], list[str]], tmp_path: Path) -> None:
    state.mount("/dev/vdb1", 10.0)
    disk, keys, _flags = asked()
    assert disk == "/dev/vdb1 /state"
    assert keys == f"{tmp_path}/state/kubelet-pki /pki"
    assert (tmp_path / "state/kubelet-pki").stat().st_mode & 0o777 == 0o700


def test_what_is_wrong_with_it_is_said(asked: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def mount(*_: object) -> None:
        raise OSError(22, "Invalid argument", "/dev/vdb1")

    monkeypatch.setattr(native, "mount", mount)
    monkeypatch.setattr(state, "find", lambda: "/dev/vdb1")
    node = Node()
    assert node.status()["identity"] == "ephemeral"
    with pytest.raises(OSError, match="Invalid argument: '/dev/vdb1'"):
        boot.keep_identity(node)
    assert node.status()["identity"] == "ephemeral: [Errno 22] Invalid argument: '/dev/vdb1'"
    assert asked() == []


def test_a_disk_that_does_not_answer_is_waited_for_so_long_and_then_left_alone(
    asked: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    over, done = os.pipe()

    def mount(*_: object) -> None:
        os.close(writer)
        os.read(reader, 1)  # until the test closes its end

    monkeypatch.setattr(native, "mount", mount)
    real = mounts.make_directories

    def make(rows: tuple[tuple[str, int], ...]) -> None:
        real(rows)
        os.write(done, b"mounted, late")

    monkeypatch.setattr(mounts, "make_directories", make)
    with pytest.raises(TimeoutError, match="/dev/vdb1 does not answer"):
        state.mount("/dev/vdb1", 0.05)
    os.close(done)
    os.close(writer)
    assert os.read(over, 100) == b"mounted, late"
    assert os.read(over, 100) == b""  # the child has ended
    os.waitpid(-1, 0)  # as PID 1 reaps whatever ends
    assert asked() == []
    os.close(reader)
    os.close(over)


def test_a_child_that_dies_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "on_state", lambda _device: os._exit(1))
    with pytest.raises(OSError, match="/dev/vdb1: not mounted"):
        state.mount("/dev/vdb1", 10.0)


def test_without_a_partition_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "find", lambda: None)
    node = Node()
    with pytest.raises(Skipped, match="no partition INITD-STATE"):
        boot.keep_identity(node)
    assert node.identity == "ephemeral: no partition INITD-STATE"
