"""Loading modules in order, and the kernel parameters."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from initd import modules, native, sysctl

if TYPE_CHECKING:
    from pathlib import Path

DEPENDENCIES = """\
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/fs/overlayfs/overlay.ko.xz:
kernel/drivers/firmware/qemu-fw-cfg.ko:
"""
# What the kubelet refuses to start without when protectKernelDefaults is set (component-helpers, node/util/sysctl).
KUBELET = {
    "vm.overcommit_memory": "1",
    "vm.panic_on_oom": "0",
    "kernel.panic": "10",
    "kernel.panic_on_oops": "1",
    "kernel.keys.root_maxkeys": "1000000",
    "kernel.keys.root_maxbytes": "25000000",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules.dep").write_text(DEPENDENCIES)
    monkeypatch.setattr(modules, "directory", lambda: str(tmp_path))
    return tmp_path


def test_what_a_module_needs_is_loaded_before_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(native, "finit_module", lambda path: loaded.append(os.path.relpath(path, tree)))
    assert modules.load(("virtio_net", "qemu_fw_cfg", "built_in")) == []
    assert loaded == [
        "kernel/net/core/failover.ko",
        "kernel/drivers/net/net_failover.ko",
        "kernel/drivers/net/virtio_net.ko",
        "kernel/drivers/firmware/qemu-fw-cfg.ko",
    ]


@pytest.mark.usefixtures("tree")
def test_one_that_fails_is_told_and_one_that_is_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> None:
        raise FileExistsError(17, "File exists", path) if "failover" in path else OSError(8, "Exec format error", path)

    monkeypatch.setattr(native, "finit_module", load)
    failures = modules.load(("virtio_net", "overlay"))
    assert failures == [
        "kernel/drivers/net/virtio_net.ko: Exec format error",
        "kernel/fs/overlayfs/overlay.ko.xz: Exec format error",
    ]


def test_a_root_without_modules_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "directory", lambda: str(tmp_path))
    assert modules.load(modules.EARLY) == ["modules.dep: No such file or directory"]


def test_static_nodes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, int]] = []

    def mknod(path: str, mode: int, device: int) -> None:
        if path.endswith("fuse"):
            raise FileExistsError(17, "File exists", path)  # its module was loaded in between
        made.append((path, mode, device))

    monkeypatch.setattr(os, "mknod", mknod)
    monkeypatch.setattr(os, "makedirs", lambda *_path, **_options: None)
    nodes = (
        "fuse initd-test/fuse c10:229",
        "tun initd-test/tun c10:200",
        "loop initd-test/loop b7:0",
        "null null c1:3",
    )
    (tree / "modules.devname").write_text("\n".join(("# comment", *nodes, "")))
    modules.make_static_nodes()
    assert made == [
        ("/dev/initd-test/tun", stat.S_IFCHR | 0o600, os.makedev(10, 200)),
        ("/dev/initd-test/loop", stat.S_IFBLK | 0o600, os.makedev(7, 0)),
    ]


def test_the_kubelet_finds_its_parameters_set() -> None:
    table = dict(sysctl.TABLE)
    assert len(table) == len(sysctl.TABLE)
    assert {name: table.get(name) for name in KUBELET} == KUBELET
    assert table["net.ipv4.ip_forward"] == table["net.ipv6.conf.all.forwarding"] == "1"


def test_parameters_are_written_and_a_missing_one_told(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/panic").touch()
    assert sysctl.apply((("kernel.panic", "10"), ("vm.none", "1")), str(tmp_path)) == [
        "vm.none=1: No such file or directory"
    ]
    assert (tmp_path / "kernel/panic").read_text() == "10"
