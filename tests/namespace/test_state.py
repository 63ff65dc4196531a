"""The partition that keeps who the node is, with a file system on it: each boot is a mount namespace of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from initd import boot, mounts, state
from initd.config.schema import Config
from initd.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.namespace.conftest import Isolated

pytestmark = pytest.mark.root

CURRENT = "kubelet-client-current.pem"
BLOCK = "-----BEGIN {0}-----\nMDA=\n-----END {0}-----\n"
GOOD = BLOCK.format("CERTIFICATE") + BLOCK.format("EC PRIVATE KEY")


class Disk:
    """A small disk with an ext4 on it, at a loop device."""

    def __init__(self, path: Path, isolated: Isolated) -> None:
        self._path, self._isolated, self.keys = path, isolated, path.with_name("pki")
        path.touch()
        os.truncate(path, 4 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(path)], check=True)
        self.device = ""
        self.attach()

    def attach(self, *options: str) -> None:
        done = subprocess.run(
            ["losetup", *options, "--find", "--show", str(self._path)], check=True, capture_output=True, text=True
        )
        self.device = done.stdout.strip()

    def detach(self) -> None:
        subprocess.run(["losetup", "-d", self.device], check=True)

    def boot(self, act: Callable[[Path], object] = lambda _keys: None, name: str = "node-1") -> Boot:
        """What becomes of a node with it; then act(where the kubelet has its keys)."""

        def body() -> Boot:
            node = Node()
            node.name, node.config = name, Config()
            with suppress(OSError):
                asyncio.run(_phase(node))
            self.keys.mkdir(exist_ok=True)
            there = sorted(os.listdir(self.keys))
            act(self.keys)
            return Boot(node.identity, self.keys.is_mount(), there)

        return self._isolated(body)


class Boot(NamedTuple):
    identity: str
    mounted: bool
    there: list[str]


async def _phase(node: Node) -> None:
    await boot.keep_identity(node)


@pytest.fixture
def disk(isolated: Isolated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """One that the node finds, and where it mounts it."""
    made = Disk(tmp_path / "disk", isolated)
    monkeypatch.setattr(state, "find", lambda: made.device)
    monkeypatch.setattr(mounts, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(mounts, "KUBELET_PKI", str(made.keys))
    yield made
    made.detach()


def certificate(text: str) -> Callable[[Path], None]:
    """What the kubelet does with a certificate: a file with its date, and a link to that by its whole path."""

    def write(keys: Path) -> None:
        (keys / "kubelet-client-2027.pem").write_text(text)
        (keys / CURRENT).symlink_to(keys / "kubelet-client-2027.pem")
        for name in state.SELF_SIGNED:
            (keys / name).write_text("of this boot")

    return write


def test_keys_come_back_without_those_that_nobody_signed(disk: Disk) -> None:
    assert disk.boot(certificate(GOOD)) == ("persistent", True, [])
    assert disk.boot() == ("persistent", True, ["kubelet-client-2027.pem", CURRENT])


@pytest.mark.parametrize("text", ["", "\0" * 4096, GOOD[:-40], GOOD.replace("CERTIFICATE", "NOTHING")])
def test_a_broken_certificate_is_put_aside(disk: Disk, text: str) -> None:
    disk.boot(certificate(text))
    new, aside = (
        f"persistent: put aside {CURRENT}, no certificate and key",
        ["kubelet-client-2027.pem", f"{CURRENT}.old"],
    )
    assert disk.boot(certificate(text)) == (new, True, aside)
    assert disk.boot() == (new, True, aside), "again"
    assert disk.boot() == ("persistent", True, aside)


def test_a_broken_certificate_for_servers_costs_the_node_no_other(disk: Disk) -> None:
    disk.boot(certificate(GOOD))
    disk.boot(lambda keys: (keys / "kubelet-server-current.pem").write_text("no"))
    found = disk.boot()
    assert found.identity == "persistent: put aside kubelet-server-current.pem, no certificate and key"
    assert CURRENT in found.there


def test_a_link_that_leads_nowhere_is_left_to_the_kubelet(disk: Disk) -> None:
    disk.boot(lambda keys: (keys / CURRENT).symlink_to(keys / "gone"))
    assert disk.boot() == ("persistent", True, [CURRENT])


def test_another_node_begins_anew_and_the_first_is_itself_again(disk: Disk) -> None:
    disk.boot(certificate(GOOD))
    new = f"persistent: new, since {state.PARTITION} is of another node or cluster"
    assert disk.boot(name="node-2") == (new, True, [])
    assert disk.boot(name="node-2") == ("persistent", True, [])
    assert disk.boot().there == ["kubelet-client-2027.pem", CURRENT]


def fill(keys: Path) -> None:
    with suppress(OSError), open(keys.parent / "state/full", "wb") as file:
        while True:
            file.write(bytes(1024))
            file.flush()


def test_a_full_one_keeps_what_it_has_and_takes_nothing_new(disk: Disk) -> None:
    disk.boot(certificate(GOOD))
    assert disk.boot(fill).identity == "persistent"
    assert disk.boot().identity == "persistent"
    disk.boot(fill)  # its own certificate's place is free again
    found = disk.boot(name="node-2")
    assert found.identity.startswith("ephemeral: [Errno 28] No space left on device")
    assert not found.mounted


def test_one_that_cannot_be_written_is_not_used(disk: Disk) -> None:
    disk.boot(certificate(GOOD))
    disk.detach()
    disk.attach("--read-only")
    found = disk.boot()
    assert found.identity.startswith("ephemeral: [Errno ")
    assert not found.mounted


def test_each_write_is_on_the_disk_at_once(disk: Disk) -> None:
    def flags(_keys: Path) -> None:
        rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        (options,) = (row[-1] for row in rows if row[4] == mounts.STATE)
        assert {"sync", "dirsync"} <= set(options.split(","))

    disk.boot(flags)


def test_a_life_after_a_fault_finds_it_done(disk: Disk) -> None:
    """The phase may run again that was done, with the kubelet's keys in use."""

    def again(keys: Path) -> None:
        certificate("half wri")(keys)
        node = Node()
        node.name, node.config = "node-1", Config()
        asyncio.run(_phase(node))
        assert node.identity == "persistent"
        assert len(os.listdir(keys)) == 4
        assert sum(f" {keys} " in line for line in Path("/proc/self/mountinfo").read_text().splitlines()) == 1

    disk.boot(again)
