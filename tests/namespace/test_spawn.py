"""How children are started, seen from inside the child: it writes what it finds in /proc/self to a pipe."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from initd import native
from initd.native import Spawn, SpawnError, Stage
from tests.namespace import calls
from tests.namespace.calls import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.namespace.conftest import Isolated

pytestmark = pytest.mark.root

CAP_SETPCAP, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_TIME = 8, 12, 21, 25
MISSING = "/proc/missing"  # nobody can have made it
DEFAULTS = {"PATH": "/usr/bin:/bin"}


def finish(child: native.Child) -> native.Exit:
    """Wait for the end of a child and reap it."""
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    end = native.wait_pid(child.pid)
    os.close(child.pidfd)
    assert end is not None
    assert end.pid == child.pid
    return end


def output(script: str, **options: object) -> str:
    """What a shell script prints when it is started with these options of Spawn."""
    source, sink = os.pipe2(os.O_CLOEXEC)
    fds = {**options.pop("fds", {}), 1: sink}  # type: ignore[dict-item]
    child = native.spawn(Spawn(("/bin/sh", "-c", script), DEFAULTS, fds=fds, **options))  # type: ignore[arg-type]
    os.close(sink)
    with open(source) as stream:
        text = stream.read()
    assert finish(child).status == 0
    return text


def status_field(text: str, name: str) -> str:
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:"))


def failure(**options: object) -> SpawnError:
    spec = Spawn(**{"argv": ("/bin/true",), "env": {}, **options})  # type: ignore[arg-type]
    with pytest.raises(SpawnError) as caught:
        native.spawn(spec)
    return caught.value


def test_arguments_environment_and_exit_status_arrive() -> None:
    child = native.spawn(Spawn(("/bin/sh", "-c", 'test "$0 $1" = "a b" && exit $CODE', "a", "b"), {"CODE": "7"}))
    end = finish(child)
    assert (end.code, end.status, end.uid) == (os.CLD_EXITED, 7, os.getuid())


@pytest.mark.parametrize(
    ("options", "stage", "number"),
    [
        ({"argv": (MISSING,)}, Stage.EXEC, errno.ENOENT),
        ({"argv": ("/etc/passwd",)}, Stage.EXEC, errno.EACCES),
        ({"cwd": MISSING}, Stage.WORKING_DIRECTORY, errno.ENOENT),
        ({"fds": {3: 900}}, Stage.DESCRIPTORS, errno.EBADF),
        ({"fds": {-1: 2}}, Stage.DESCRIPTORS, errno.EBADF),
        ({"rlimits": {resource.RLIMIT_CORE: (2, 1)}}, Stage.LIMITS, errno.EINVAL),
        ({"rlimits": {999: (1, 1)}}, Stage.LIMITS, errno.EINVAL),
        ({"oom_score_adj": 1001}, Stage.OOM_SCORE, errno.EINVAL),
        ({"cgroup": 900}, Stage.CGROUP, errno.EBADF),
        ({"namespaces": Namespace.MOUNT | 0x200}, Stage.CLONE, errno.EINVAL),  # CLONE_FS contradicts it
    ],
)
def test_the_stage_and_errno_of_a_failure_are_reported(options: dict[str, object], stage: Stage, number: int) -> None:
    error = failure(**options)
    assert error.stage is stage
    assert error.errno == number
    assert str(error) == f"{error.filename}: {stage.value[1]}: {os.strerror(number)}"
    assert native.wait_any() is None, "the child that failed is left as a zombie"


def test_a_failure_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    failure(argv=(MISSING,))
    failure(cgroup=900)
    assert os.listdir("/proc/self/fd") == before


def test_a_bounding_set_that_cannot_be_lowered_is_reported(isolated: Isolated) -> None:
    def body() -> Stage:
        calls.drop_capabilities(set(range(64)) - {CAP_SETPCAP})
        return failure(bounding=frozenset({1})).stage

    assert isolated(body) is Stage.CAPABILITIES


def test_the_child_starts_in_its_cgroup(cgroup: Path) -> None:
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lines = output("cat /proc/self/cgroup", cgroup=fd).splitlines()
    finally:
        os.close(fd)
    assert f"0::/{cgroup.name}" in [line.replace("//", "/") for line in lines]


def test_a_cgroup_that_is_gone_is_reported(cgroup: Path) -> None:
    path = cgroup / "gone"
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    path.rmdir()
    error = failure(cgroup=fd)
    os.close(fd)
    assert error.stage is Stage.CGROUP


@pytest.mark.parametrize(("program", "number"), [(MISSING, errno.ENOENT), ("/bin/true", None)])
def test_a_frozen_cgroup_does_not_block_the_parent(cgroup: Path, program: str, number: int | None) -> None:
    (cgroup / "cgroup.freeze").write_text("1")
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    begun = time.monotonic()
    child = native.spawn(Spawn((program,), {}, cgroup=fd))
    assert time.monotonic() - begun < 1.0
    os.close(fd)
    assert native.wait_any() is None, "it has ended, and is to begin yet"
    (cgroup / "cgroup.freeze").write_text("0")
    finish(child)
    late = native.late_failure(child.report, (program,))
    os.close(child.report)
    assert (late and (late.stage, late.errno)) == (number and (Stage.EXEC, number))


def targets(fds: dict[int, int]) -> dict[int, str]:
    """What the child's descriptors point to, by number. ls adds the one with which it reads the folder."""
    source, sink = os.pipe2(os.O_CLOEXEC)
    child = native.spawn(Spawn(("/bin/ls", "-l", "/proc/self/fd"), {}, fds={**fds, 1: sink}))
    os.close(sink)
    with open(source) as stream:
        links = [line.removesuffix(" (deleted)\n").split()[-3:] for line in stream if "->" in line]
    finish(child)
    return {int(number): target for number, _, target in links if target != f"/proc/{child.pid}/fd"}


@settings(max_examples=60)
@given(st.data())
def test_descriptors_arrive_whatever_the_mapping(data: st.DataObject) -> None:
    """Any mapping from child to parent numbers: permutations, cycles, duplicates, numbers in use and not."""
    files = [os.memfd_create(f"file{index}") for index in range(5)]
    try:
        numbers = st.sampled_from([0, *range(2, 9), *files])
        mapping = data.draw(st.dictionaries(numbers, st.sampled_from(files), max_size=7))
        names = {fd: os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)") for fd in files}
        found = targets(mapping)
    finally:
        for fd in files:
            os.close(fd)
    assert found.pop(1).startswith("pipe:")
    expected = {0: "/dev/null", 2: "/dev/null", **{child: names[parent] for child, parent in mapping.items()}}
    assert found == expected


def test_what_is_not_given_is_closed_even_without_close_on_exec() -> None:
    inheritable = os.dup2(os.open("/dev/zero", os.O_RDONLY), 50)
    try:
        assert not [target for target in targets({}).values() if target == "/dev/zero"]
    finally:
        os.close(inheritable)


def test_signals_are_reset_and_the_session_is_new(isolated: Isolated) -> None:
    def body() -> tuple[str, str]:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        return output("cat /proc/self/status"), output("read -r line < /proc/$$/stat; echo $$ $line")

    status, stat = isolated(body)
    assert int(status_field(status, "SigBlk"), 16) == 0
    assert int(status_field(status, "SigIgn"), 16) == 0
    pid, fields = stat.split()[0], stat.rpartition(")")[2].split()
    assert (fields[2], fields[3]) == (pid, pid), "process group and session are the child's own"


def test_the_mask_of_the_parent_is_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finish(native.spawn(Spawn(("/bin/true",), {})))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


def test_limits_oom_score_directory_and_seal_are_set() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = output(
        "pwd; cat /proc/self/oom_score_adj /proc/self/status /proc/self/limits",
        rlimits={resource.RLIMIT_NOFILE: (100, min(hard, 200)), resource.RLIMIT_CORE: (0, resource.RLIM_INFINITY)},
        oom_score_adj=321,
        sealed=True,
        cwd="/usr",
    )
    assert text.splitlines()[:2] == ["/usr", "321"]
    assert (status_field(text, "NoNewPrivs"), status_field(text, "Seccomp")) == ("1", "2")
    limits = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines() if line.startswith("Max ")}
    assert limits["Max open files"] == ["100", "200"]
    assert limits["Max core file size"] == ["0", "unlimited"]


def test_capabilities_outside_the_bounding_set_are_gone() -> None:
    status = output("cat /proc/self/status", bounding=frozenset({CAP_NET_ADMIN}))
    for field in ("CapBnd", "CapPrm", "CapEff"):
        assert int(status_field(status, field), 16) == 1 << CAP_NET_ADMIN, field
    assert int(status_field(status, "CapAmb"), 16) == 0


def test_namespaces_can_be_added() -> None:
    assert output("echo $$", namespaces=Namespace.PID | Namespace.MOUNT).strip() == "1"


def test_text_with_a_nul_byte_is_refused() -> None:
    with pytest.raises(ValueError, match=r"argv: .*NUL"):
        native.spawn(Spawn(("/bin/echo", "a\0b"), {}))
    with pytest.raises(ValueError, match=r"env: .*NUL"):
        native.spawn(Spawn(("/bin/echo",), {"A": "\0"}))


def forked(body: Callable[[], str], **options: object) -> str:
    """What `body` returns in a child without a program."""
    source, sink = os.pipe2(os.O_CLOEXEC)
    child = native.spawn(Spawn((), {}, fds={7: sink}, **options))  # type: ignore[arg-type]
    if child.pid == 0:
        try:
            os.write(7, body().encode())
        finally:
            os._exit(0)
    os.close(sink)
    with open(source) as stream:
        text = stream.read()
    assert finish(child).status == 0
    return text


def test_a_fork_holds_only_what_it_was_given() -> None:
    text = forked(lambda: " ".join(sorted(os.listdir("/proc/self/fd"))))
    assert text.split() == ["0", "1", "2", "3", "7"]  # 3 is the folder that it lists


def test_a_fork_has_its_own_session_limits_and_no_ignored_signal() -> None:
    limits = {resource.RLIMIT_NOFILE: (64, 64)}
    body = lambda: f"{os.getsid(0) == os.getpid()} {resource.getrlimit(resource.RLIMIT_NOFILE)} {dispositions()}"  # noqa: E731
    assert forked(body, rlimits=limits) == f"True (64, 64) {0:016x} {0:016x}"


def dispositions() -> str:
    with open("/proc/self/status") as file:
        text = file.read()
    return f"{status_field(text, 'SigIgn')} {status_field(text, 'SigBlk')}"


def test_a_fork_keeps_only_its_capabilities_and_is_refused_what_the_filter_lists() -> None:
    def body() -> str:
        now = time.clock_gettime(time.CLOCK_REALTIME)
        with suppress(PermissionError):
            time.clock_settime(time.CLOCK_REALTIME, now)
            return "the clock was set"
        with open("/proc/self/status") as file:
            return status_field(file.read(), "CapEff")

    assert int(forked(body, bounding=frozenset({CAP_NET_ADMIN}), sealed=True), 16) == 1 << CAP_NET_ADMIN
    sys_time = frozenset({CAP_SYS_TIME})
    assert int(forked(body, bounding=sys_time, sealed=True), 16) == 1 << CAP_SYS_TIME, "the filter, not the capability"


def test_a_clock_that_may_not_be_told_anything_is_an_error() -> None:
    """That the kernel takes it is seen in a VM: there is but one clock on a machine."""

    def body() -> str:
        with pytest.raises(PermissionError, match="adjtimex") as caught:
            native.adjtime(0.0)
        return str(caught.value)

    assert forked(body, bounding=frozenset({CAP_NET_ADMIN})) == "[Errno 1] adjtimex: Operation not permitted"


def test_a_fork_runs_a_loop_of_its_own_inside_one_that_runs() -> None:
    async def answer() -> str:
        await asyncio.sleep(0)
        return str(os.getpid())

    async def parent() -> str:
        return forked(lambda: asyncio.run(answer()))

    assert int(asyncio.run(parent())) != os.getpid()


def test_a_fork_that_fails_says_at_which_step() -> None:
    with pytest.raises(SpawnError, match="fork: setting resource limits: Invalid argument"):
        native.spawn(Spawn((), {}, rlimits={999: (1, 1)}))
