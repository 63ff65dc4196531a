"""Constants and values of initd.native: nothing here asks the kernel for anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from initd import native
from initd._native import lib
from initd.native import MountFlag, SpawnError, Stage
from tests.namespace import calls


def test_every_stage_of_the_c_code_has_its_text() -> None:
    header = (Path(__file__).parents[2] / "native" / "initd.h").read_text()
    body = header.partition("enum initd_stage {")[2].partition("}")[0]
    names = [name.strip().removeprefix("INITD_") for name in body.split(",") if name.strip()]
    assert names[0] == "STARTED"
    assert {name: getattr(lib, f"INITD_{name}") for name in names[1:]} == {
        stage.name: stage.value[0] for stage in Stage
    }


def test_flags_have_the_kernels_values() -> None:
    """A few that differ between libraries or are easily mistaken: include/uapi/linux/mount.h."""
    assert (MountFlag.RDONLY, MountFlag.BIND, MountFlag.REC, MountFlag.SHARED) == (1, 4096, 16384, 1 << 20)
    assert (native.UmountFlag.DETACH, native.UmountFlag.NOFOLLOW) == (2, 8)
    assert (int(native.RebootCommand.CAD_OFF), int(native.Resolve.BENEATH)) == (0, 8)
    assert int(calls.Namespace.PID) == 1 << 29


def test_an_error_reads_as_a_sentence() -> None:
    error = SpawnError(2, "/usr/bin/kubelet", Stage.CGROUP)
    assert str(error) == "/usr/bin/kubelet: entering cgroup: No such file or directory"
    assert isinstance(error, OSError)
    assert (error.errno, error.filename, error.stage) == (2, "/usr/bin/kubelet", Stage.CGROUP)


@pytest.mark.parametrize("module", ["dataclasses", "inspect", "signal", "socket", "ctypes", "asyncio"])
def test_importing_it_costs_pid_1_nothing_else(module: str) -> None:
    """containerd's exec waits for this import."""
    script = f"import sys; sys.path[:0] = {sys.path!r}; import initd.native; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", script], check=False).returncode == 0
