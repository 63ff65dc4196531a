"""The kit of faults without a machine: what it asks QEMU and the probe for, in which order, and what it undoes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, cast

import pytest

from qemu import faults
from qemu.errors import HarnessError
from tests.vm.rows import ROWS

if TYPE_CHECKING:
    from qemu.machine import Machine
    from qemu.probe import Probe

PROCESSES = [
    {"pid": 1, "ppid": 0, "comm": "init", "cgroup": "/initd/pid1"},
    {"pid": 20, "ppid": 1, "comm": "containerd-shim", "cgroup": "/shims"},
    {"pid": 30, "ppid": 1, "comm": "containerd-shim", "cgroup": "/shims"},
    {"pid": 21, "ppid": 20, "comm": "probe", "cgroup": "/kubepods/x"},
    {"pid": 41, "ppid": 1, "comm": "mount", "cgroup": "/kubelet"},
    {"pid": 40, "ppid": 1, "comm": "kubelet", "cgroup": "/kubelet"},
]


class Board:
    """A machine and a probe that note what they are asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.file = "/disk"

    def qmp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.asked.append((command, arguments))
        if command == "blockdev-add" and arguments and arguments["driver"] == "blkdebug":
            self.file = 'json:{"driver": "raw", "file": {"driver": "blkdebug", "image": {"filename": "/disk"}}}'
        return [{"node-name": "root", "file": self.file}] if command.startswith("query") else {}

    def set_link(self, up: bool) -> None:
        self.asked.append(("link", up))

    def do(self, command: str, **parameters: Any) -> dict[str, Any]:
        self.asked.append((command, parameters))
        return {"error": None, **parameters}

    def processes(self) -> list[dict[str, Any]]:
        return PROCESSES


@pytest.fixture
def board() -> Board:
    return Board()


def both(board: Board) -> tuple[Machine, Probe]:
    return cast("Machine", board), cast("Probe", board)


def test_what_was_done_is_undone_also_when_the_body_fails(board: Board) -> None:
    with pytest.raises(OSError, match="body"), faults.inject("link-cut", *both(board)):
        raise OSError("body")
    assert board.asked == [("link", False), ("link", True)]


def test_a_role_is_its_oldest_process_and_rather_not_the_probes_own_shim(board: Board) -> None:
    assert faults.find(*both(board), "kubelet") == 40
    assert faults.find(*both(board), "shim") == 30
    with pytest.raises(HarnessError, match="no process is containerd"):
        faults.find(*both(board), "containerd")
    with faults.inject("stop-kubelet", *both(board)) as done:
        assert done["pid"] == 40
    assert [parameters["signal"] for _, parameters in board.asked] == [signal.SIGSTOP, signal.SIGCONT]


def test_a_broken_disk_is_mended_with_the_file_that_it_had(board: Board) -> None:
    with faults.inject("disk-broken", *both(board)):
        pass
    added = [arguments for command, arguments in board.asked if command == "blockdev-add"]
    assert added[0]["image"]["filename"] == added[1]["filename"] == "/disk"


def test_rows_name_faults_and_have_names_of_their_own() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert {row.fault, row.also or row.fault} <= set(faults.FAULTS)
        assert row.own or row.when == "running", "nothing reboots the machine that other tests share"
