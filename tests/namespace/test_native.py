"""The other system calls, each against the kernel, in namespaces of the test's own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from initd import native
from initd.native import MountFlag, RebootCommand, Resolve, Spawn, UmountFlag
from tests.namespace import calls
from tests.namespace.calls import Namespace

if TYPE_CHECKING:
    from tests.namespace.conftest import Isolated

pytestmark = pytest.mark.root

CAP_KILL = 5


def mount_options(target: str) -> list[str]:
    """The mount's own options from mountinfo, of the last mount at that place."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [row[5] for row in rows if row[4] == target][-1].split(",")


def test_mount_move_remount_and_umount(isolated: Isolated, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")

    def body() -> tuple[list[str], list[str]]:
        os.mkdir(first)
        os.mkdir(second)
        native.mount("tmpfs", first, "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "size=64k,mode=0700")
        Path(first, "file").write_text("x")
        native.mount(first, second, "", MountFlag.MOVE)
        assert Path(second, "file").exists()
        assert os.listdir(first) == []
        before = mount_options(second)
        native.mount("", second, "", MountFlag.REMOUNT | MountFlag.BIND | MountFlag.RDONLY | MountFlag.NOEXEC)
        with pytest.raises(OSError, match="Read-only file system"):
            Path(second, "other").write_text("x")
        after = mount_options(second)
        with open(f"{second}/file"), pytest.raises(OSError, match="umount: Device or resource busy"):
            native.umount(second)
        native.umount(second, UmountFlag.DETACH | UmountFlag.NOFOLLOW)
        assert os.listdir(second) == []
        return before, after

    before, after = isolated(body)
    assert {"rw", "nosuid", "nodev"} <= set(before)
    assert {"ro", "noexec"} <= set(after)


def test_pivot_root(isolated: Isolated, tmp_path: Path) -> None:
    root = str(tmp_path)

    def body() -> list[str]:
        native.mount("tmpfs", root, "tmpfs")
        os.mkdir(f"{root}/old")
        calls.pivot_root(root, f"{root}/old")
        os.chdir("/")
        native.umount("/old", UmountFlag.DETACH)
        return os.listdir("/")

    assert isolated(body) == ["old"]


def test_errors_name_the_call_and_the_path(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="mount: No such file") as caught:
        native.mount("source", missing, "tmpfs")
    assert (caught.value.filename, caught.value.filename2) == (missing, "source")
    with pytest.raises(OSError, match="mount: No such device") as unknown:
        native.mount("source", str(tmp_path), "nosuchfs")
    assert unknown.value.errno == errno.ENODEV
    for call in (native.umount, native.probe_filesystem):
        with pytest.raises(FileNotFoundError) as named:
            call(missing)
        assert named.value.filename == missing
    with pytest.raises(OSError, match="pivot_root: ") as pivot:
        calls.pivot_root(missing, missing)
    assert pivot.value.filename == missing
    with pytest.raises(ValueError, match=r"target: .*NUL"):
        native.umount("a\0b")


def test_wait_any_tells_and_wait_pid_reaps() -> None:
    assert native.wait_any() is None
    first = native.spawn(Spawn(("/bin/sh", "-c", "kill -KILL $$"), {}))
    os.waitid(os.P_PIDFD, first.pidfd, os.WEXITED | os.WNOWAIT)
    assert native.wait_any() == first.pid
    assert native.wait_any() == first.pid, "telling does not reap"
    assert native.wait_pid(first.pid) == native.Exit(first.pid, os.getuid(), os.CLD_KILLED, signal.SIGKILL)
    with pytest.raises(ChildProcessError):
        native.wait_pid(first.pid)
    assert native.wait_any() is None
    os.close(first.pidfd)


def test_a_running_child_is_waited_for_without_blocking_and_signalled_by_pidfd() -> None:
    child = native.spawn(Spawn(("/bin/sleep", "1000"), {}))
    assert native.wait_any() is None
    assert native.wait_pid(child.pid) is None
    other = native.pidfd_open(child.pid)
    native.pidfd_send_signal(other, signal.SIGTERM)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    end = native.wait_pid(child.pid)
    assert end is not None
    assert (end.code, end.status) == (os.CLD_KILLED, signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        native.pidfd_send_signal(other, signal.SIGTERM)
    os.close(other)
    os.close(child.pidfd)


def test_signalfd_blocks_and_says_who_sent(isolated: Isolated) -> None:
    def body() -> tuple[native.SignalInfo | None, ...]:
        fd = native.signalfd({signal.SIGTERM, signal.SIGUSR1})
        nothing = native.read_signal(fd)
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process if it were not blocked
        return nothing, native.read_signal(fd), native.read_signal(fd)

    nothing, found, again = isolated(body)
    assert nothing is None
    assert again is None
    assert found == native.SignalInfo(signal.SIGTERM, 1, 0, 0)
    with pytest.raises(OSError, match="signalfd: Invalid argument"):
        native.signalfd({1000})


@pytest.mark.parametrize(("command", "number"), [("RESTART", signal.SIGHUP), ("POWER_OFF", signal.SIGINT)])
def test_reboot_ends_a_pid_namespace(command: str, number: int) -> None:
    """The kernel tells a container's parent which one it was by the signal that ends process 1: reboot(2)."""
    script = (
        f"from initd import native; import os\nassert os.getpid() == 1; native.reboot(native.RebootCommand.{command})"
    )
    python = os.path.realpath("/proc/self/exe")
    env = {"PYTHONPATH": os.pathsep.join(filter(None, __import__("sys").path))}
    child = native.spawn(Spawn((python, "-S", "-c", script), env, fds={2: 2}, namespaces=Namespace.PID))
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    end = native.wait_pid(child.pid)
    os.close(child.pidfd)
    assert end is not None
    assert (end.code, end.status) == (os.CLD_KILLED, number)


def test_reboot_without_the_right_is_an_error(isolated: Isolated) -> None:
    def body() -> None:
        calls.drop_capabilities(())
        for command in RebootCommand:
            with pytest.raises(PermissionError, match="reboot: Operation not permitted"):
                native.reboot(command)

    isolated(body)


def test_sethostname_prctl_setns(isolated: Isolated) -> None:
    host = os.uname().nodename

    def body() -> tuple[str, str, str]:
        outside = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        native.sethostname("node-1")
        inside = os.uname().nodename
        calls.unshare(Namespace.UTS)
        native.sethostname("node-2")
        calls.setns(outside, Namespace.UTS)
        calls.prctl_set(calls.Prctl.NO_NEW_PRIVS, 1)
        return inside, os.uname().nodename, Path("/proc/self/status").read_text()

    inside, back, status = isolated(body)
    assert (inside, back) == ("node-1", "node-1")
    assert "NoNewPrivs:\t1" in status
    assert os.uname().nodename == host
    with pytest.raises(OSError, match="setns: Bad file descriptor"):
        calls.setns(900, Namespace.UTS)
    with pytest.raises(OSError, match="prctl 999: Invalid argument"):
        calls.prctl_set(999, 0)


def test_dropped_capabilities_do_not_come_back_with_exec(isolated: Isolated) -> None:
    def body() -> tuple[str, str]:
        calls.drop_capabilities({CAP_KILL})
        mine = Path("/proc/self/status").read_text()
        return mine, subprocess.run(
            ["/bin/cat", "/proc/self/status"], capture_output=True, check=True, text=True
        ).stdout

    for status in isolated(body):
        fields = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Cap"))
        assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {1 << CAP_KILL}
        assert int(fields["CapInh"], 16) == 0


def test_openat2_stays_where_resolve_says(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("inside")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "out").symlink_to("/etc/passwd")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        fd = native.openat2(directory, "file", flags, Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS)
        assert os.read(fd, 100) == b"inside"
        assert not os.get_inheritable(fd)
        os.close(fd)
        refused = [
            ("link", Resolve.NO_SYMLINKS, errno.ELOOP),
            ("out", Resolve.BENEATH, errno.EXDEV),
            ("../x", Resolve.BENEATH, errno.EXDEV),
            ("/etc/passwd", Resolve.BENEATH, errno.EXDEV),
            ("/proc/self/exe", Resolve.NO_MAGICLINKS, errno.ELOOP),
            ("/proc/self/status", Resolve.NO_XDEV, errno.EXDEV),
        ]
        for path, resolve, number in refused:
            with pytest.raises(OSError, match="openat2: ") as caught:
                native.openat2(directory, path, flags, resolve)
            assert (caught.value.errno, caught.value.filename) == (number, path)
    finally:
        os.close(directory)


def test_finit_module_names_what_is_no_module(tmp_path: Path) -> None:
    for name in ("bad.ko", "bad.ko.xz"):
        path = tmp_path / name
        path.write_bytes(b"no module" * 100)
        with pytest.raises(OSError, match="finit_module: ") as caught:
            native.finit_module(str(path))
        assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        native.finit_module(str(tmp_path / "missing.ko"))


def test_load_module_finds_nothing_for_an_unknown_alias() -> None:
    assert native.load_module("pci:v0000FFFFd0000FFFF") == []


def test_load_module_reports_what_cannot_be_loaded(isolated: Isolated) -> None:
    """A module that is configured but not there: the error says which alias it was for."""

    def body() -> tuple[int | None, str]:
        native.mount("tmpfs", "/run", "tmpfs")
        os.mkdir("/run/modprobe.d")
        Path("/run/modprobe.d/test.conf").write_text("alias test:broken initd-missing\n")
        native._KMOD.clear()  # an earlier test may have read the configuration
        with pytest.raises(OSError, match="load_module: ") as caught:
            native.load_module("test:broken")
        return caught.value.errno, caught.value.filename

    assert isolated(body) == (errno.ENOENT, "test:broken")


def test_probe_filesystem_reads_type_label_and_uuid(tmp_path: Path) -> None:
    image, uuid = tmp_path / "image", "11111111-2222-3333-4444-555555555555"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    assert native.probe_filesystem(str(image)) == {}
    subprocess.run(["mkfs.ext4", "-q", "-L", "initd-var", "-U", uuid, image], check=True)
    found = native.probe_filesystem(str(image))
    assert (found["TYPE"], found["LABEL"], found["UUID"]) == ("ext4", "initd-var", uuid)
    (tmp_path / "tree").mkdir()
    subprocess.run(["mkfs.erofs", tmp_path / "erofs", tmp_path / "tree"], check=True, capture_output=True)
    assert native.probe_filesystem(str(tmp_path / "erofs"))["TYPE"] == "erofs"
