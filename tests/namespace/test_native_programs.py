"""The programs of native/, compiled as the image build does it, and run."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from initd import native
from initd.native import MountFlag, Spawn
from tests.namespace.calls import Namespace

if TYPE_CHECKING:
    from tests.namespace.conftest import Isolated

pytestmark = pytest.mark.root

NATIVE = Path(__file__).parents[2] / "native"
PORT = 8080
SHA2 = "python_hashlib_Hacl_Hash_SHA2_"


def build(*arguments: object) -> None:
    subprocess.run([sys.executable, NATIVE / "build.py", *map(str, arguments)], check=True)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all static programs."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("stage1", "pause", "web", "probe"):
        build("program", name, "--output", folder / name)
    return folder


def loopback_up() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def request(raw: bytes) -> bytes:
    """The whole answer to one HTTP request; waits for the server to listen by connecting until it does."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=10) as connection:
        connection.sendall(raw)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def get(target: str) -> tuple[int, bytes]:
    head, _, body = request(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    return int(head.split()[1]), body


def probe(command: str, **parameters: object) -> dict[str, Any]:
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    status, body = get(f"/{command}?{query}")
    assert status == 200
    return cast("dict[str, Any]", json.loads(body))


def start(*argv: object, namespaces: int = 0) -> native.Child:
    """Start a server; return when its port listens, which the kernel tells by /proc/net/tcp6."""
    child = native.spawn(Spawn(tuple(map(str, argv)), {}, fds={2: 2}, namespaces=namespaces))
    end = time.monotonic() + 20
    while f":{PORT:04X} " not in Path("/proc/net/tcp6").read_text():
        assert native.wait_pid(child.pid) is None, f"{argv[0]} ended"
        assert time.monotonic() < end, f"{argv[0]} does not listen"
        os.sched_yield()
    return child


def stop(child: native.Child) -> native.Exit:
    native.pidfd_send_signal(child.pidfd, signal.SIGTERM)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    end = native.wait_pid(child.pid)
    os.close(child.pidfd)
    assert end is not None
    return end


def test_stage1_refuses_to_run_on_a_running_system(programs: Path) -> None:
    done = subprocess.run([programs / "stage1"], capture_output=True, check=False, text=True)
    assert done.returncode == 1
    assert "initramfs" in done.stderr


def test_builds_are_reproducible(programs: Path, tmp_path: Path) -> None:
    build("program", "pause", "--output", tmp_path / "elsewhere" / "pause")
    assert (tmp_path / "elsewhere" / "pause").read_bytes() == (programs / "pause").read_bytes()
    build("--output", tmp_path / "one")
    build("extension", "--output", tmp_path / "two")
    (first,), (second,) = (tmp_path / "one").iterdir(), (tmp_path / "two").iterdir()
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, f"{NATIVE}/build.py", "program", "pause", "--output", f"{tmp_path}/out/pause"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=env)
    assert done.returncode == 1
    assert "gcc is not installed" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_images_hold_the_programs(tmp_path: Path) -> None:
    build("images", "--output", tmp_path)
    for name in ("pause", "web", "probe"):
        with tarfile.open(tmp_path / f"{name}.tar") as archive:
            index = json.load(cast("Any", archive.extractfile("index.json")))
        assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == f"initd.local/{name}:1"


def test_pause_reaps_and_ends_when_told(programs: Path) -> None:
    """As process 1 of a pid namespace: there only a handled signal arrives."""
    script = '/bin/true & exec "$0"'  # the shell's child becomes pause's, which must reap what it did not start
    namespaces = Namespace.PID | Namespace.MOUNT
    child = native.spawn(Spawn(("/bin/sh", "-c", script, str(programs / "pause")), {}, namespaces=namespaces))
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    end = time.monotonic() + 20
    while Path(f"/proc/{child.pid}/comm").read_text() != "pause\n" or children.read_text():
        assert time.monotonic() < end, f"not reaped: {children.read_text()}"
        os.sched_yield()
    assert stop(child).status == 0


def test_web_serves_its_hostname_files_and_fetches(isolated: Isolated, programs: Path, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a b").write_bytes(b"\0binary\xff")
    (tmp_path / "escape").symlink_to("/etc/passwd")

    def body() -> None:
        loopback_up()
        native.sethostname("pod-1")
        child = start(programs / "web", "serve", PORT, tmp_path, namespaces=Namespace.PID)
        assert get("/") == (200, b"pod-1\n")
        assert get("/file/dir/a%20b") == (200, b"\0binary\xff")
        assert get(f"/fetch/127.0.0.1/{PORT}/file/dir/a%2520b") == (200, b"\0binary\xff")
        assert get("/fetch/127.0.0.1/1/")[0] == 502
        for missing in ("/file/escape", "/file/../../../../etc/passwd", "/file/dir", "/file/none", "/none"):
            assert get(missing)[0] == 404, missing
        for malformed in (b"POST / HTTP/1.1\r\n\r\n", b"GET /%00 HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n", b"x" * 9000):
            assert request(malformed).split()[1] == b"400", malformed
        command = [f"{programs}/web", "get", "127.0.0.1", str(PORT), "/"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"pod-1\n"
        refused = subprocess.run([*command[:3], "1", "/"], capture_output=True, check=False, text=True)
        assert (refused.returncode, "Connection refused" in refused.stderr) == (1, True)
        assert stop(child).status == 0

    isolated(body)


def test_web_is_not_held_up_by_a_silent_client(isolated: Isolated, programs: Path) -> None:
    def body() -> None:
        loopback_up()
        child = start(programs / "web", "serve", PORT)
        with socket.create_connection(("127.0.0.1", PORT)) as silent:
            silent.sendall(b"GET ")
            assert get("/")[0] == 200
        stop(child)

    isolated(body)


def test_probe_looks_into_the_mount_namespace_of_process_1(isolated: Isolated, programs: Path, tmp_path: Path) -> None:
    inner, read_only = tmp_path / "inner", tmp_path / "read-only"

    def body() -> None:
        loopback_up()
        inner.mkdir()
        read_only.mkdir()
        child = start(programs / "probe", PORT, namespaces=Namespace.MOUNT)
        native.mount("tmpfs", str(inner), "tmpfs")  # seen by process 1, not by the probe's own namespace
        (inner / "file").write_bytes(b'a"\\\n\xff')
        (inner / "link").symlink_to("file")
        assert probe("read", path=inner / "file") == {"text": 'a"\\\n\xff'}
        assert probe("readlink", path=inner / "link") == {"text": "file"}
        assert sorted(probe("list", path=inner)["names"]) == ["file", "link"]
        assert probe("read", path=inner / "none") == {"error": "ENOENT"}
        assert probe("read", path="relative") == {"error": "EINVAL"}
        assert probe("write", path=inner / "new") == {"error": None}
        assert not (inner / "new").exists()
        assert str(inner) in probe("read", path="/proc/1/mountinfo")["text"]
        assert get("/nothing")[0] == 404

        native.mount("tmpfs", str(read_only), "tmpfs")
        (read_only / "deep" / "deeper").mkdir(parents=True)
        assert {other["error"] for other in probe("walk", path=read_only)["others"]} == {"none"}
        native.mount("", str(read_only), "", MountFlag.REMOUNT | MountFlag.RDONLY)
        native.mount("tmpfs", str(read_only / "deep" / "deeper"), "tmpfs")  # another file system is not entered
        assert probe("walk", path=read_only) == {"others": [], "directories": 2}
        assert probe("write", path=read_only / "new") == {"error": "EROFS"}
        stop(child)

    isolated(body)


def test_probe_lists_and_signals_processes_and_mounts(isolated: Isolated, programs: Path, tmp_path: Path) -> None:
    def body() -> None:
        loopback_up()
        child = start(programs / "probe", PORT, namespaces=Namespace.MOUNT)
        victim = native.spawn(Spawn(("/bin/sleep", "1000"), {}))
        found = {process["pid"]: process for process in probe("processes")["processes"]}
        sleeper = found[victim.pid]
        assert (sleeper["comm"], sleeper["argv"], sleeper["ppid"]) == ("sleep", ["/bin/sleep", "1000"], 1)
        assert sleeper["pss"] > 0
        assert sleeper["cgroup"].startswith("/")
        asked = time.clock_gettime(time.CLOCK_BOOTTIME)
        killed = probe("kill", pid=victim.pid, signal=9)
        assert (killed["error"], killed["pid"]) == (None, victim.pid)
        assert asked <= killed["at"] <= time.clock_gettime(time.CLOCK_BOOTTIME)
        os.waitid(os.P_PIDFD, victim.pidfd, os.WEXITED)
        for wrong in ({"pid": 0, "signal": 9}, {"pid": -1, "signal": 9}, {"pid": 1}):
            assert probe("kill", **wrong) == {"error": "EINVAL"}
        assert probe("kill", pid=victim.pid, signal=0) == {"error": "ESRCH"}
        assert probe("mount", path=tmp_path / "here") == {"error": None}
        mounts = Path(f"/proc/{child.pid}/mountinfo").read_text()
        assert f" {tmp_path / 'here'} " in mounts
        assert f" {tmp_path / 'here'} " not in Path("/proc/self/mountinfo").read_text()
        stop(child)

    isolated(body)


def test_probe_makes_fills_and_removes_files(isolated: Isolated, programs: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"

    def body() -> None:
        loopback_up()
        inner.mkdir()
        native.mount("tmpfs", str(inner), "tmpfs", data="size=1m")
        child = start(programs / "probe", PORT, namespaces=Namespace.MOUNT)
        assert probe("put", path=inner / "file", text="a b&c") == {"error": None}
        assert (inner / "file").read_bytes() == b"a b&c"
        assert probe("put", path=inner / "none" / "file", text="") == {"error": "ENOENT"}
        assert probe("put", path=inner / "file") == {"error": "EINVAL"}
        size = probe("fill", path=inner / "fill")["bytes"]
        assert size > 1 << 19
        assert os.statvfs(inner).f_bavail == 0
        assert probe("put", path=inner / "more", text="a") == {"error": "ENOSPC"}
        assert probe("remove", path=inner / "fill") == {"error": None}
        assert probe("remove", path=inner / "fill") == {"error": "ENOENT"}
        assert probe("fill", path=inner / "fill", leave=1 << 19)["bytes"] == size - (1 << 19)
        assert os.statvfs(inner).f_bavail > 0
        assert set(probe("clock")) == {"synchronized"}, "it is the host's clock too: no jump here"
        stop(child)

    isolated(body)


def test_probe_holds_connections_until_it_is_killed(isolated: Isolated, programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def body() -> None:
        loopback_up()
        child = start(programs / "probe", PORT, "deaf", namespaces=Namespace.MOUNT)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(8)
            held = probe("hold", path=path, count=3)
            assert (held["connected"], held["closed"]) == (3, 0)
            accepted = [listener.accept()[0] for _ in range(3)]
            assert probe("kill", pid=held["pid"], signal=int(signal.SIGKILL))["error"] is None
            assert [connection.recv(1) for connection in accepted] == [b""] * 3, "they were open until then"
            for connection in accepted:
                connection.close()
        assert probe("hold", path=path, count=3)["connected"] == 0, "nobody listens"
        for wrong in ({}, {"count": 0}, {"count": 5001}):
            assert probe("flood", path=path, **wrong) == {"error": "EINVAL"}
        native.pidfd_send_signal(child.pidfd, signal.SIGTERM)
        assert probe("processes")["processes"], "a deaf probe goes on"
        native.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        assert stop(child).status == signal.SIGKILL

    isolated(body)


def test_probe_talks_to_sockets_and_limits_descriptors(isolated: Isolated, programs: Path, tmp_path: Path) -> None:
    def body() -> None:
        loopback_up()
        child = start(programs / "probe", PORT, namespaces=Namespace.MOUNT)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(tmp_path / "datagrams"))
            sent = probe("datagrams", path=tmp_path / "datagrams", count=3)
            assert sent["sent"] == 3
            assert sent["begun"] <= sent["ended"]
            assert [receiver.recv(64) for _ in range(3)] == [b"STOPPING=1"] * 3
        assert probe("datagrams", path=tmp_path / "none", count=1) == {"error": "ENOENT"}
        assert probe("datagrams", path=tmp_path / "datagrams") == {"error": "EINVAL"}
        answering = "import socket, sys; s = socket.socket(1); s.bind(sys.argv[1]); s.listen(); c = s.accept()[0]"
        server = native.spawn(
            Spawn((sys.executable, "-S", "-c", f"{answering}; c.send(c.recv(64)[::-1])", str(tmp_path / "echo")), {})
        )
        end = time.monotonic() + 20
        while (answer := probe("call", path=tmp_path / "echo", frame="00ff41")).get("error"):
            assert time.monotonic() < end
        assert answer == {"text": "A\xff\x00"}
        os.waitid(os.P_PIDFD, server.pidfd, os.WEXITED)
        assert probe("limit", pid=child.pid, soft=17) == {"error": None}
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE)[0] == 17
        assert probe("limit", pid=child.pid, soft="max") == {"error": None}
        assert len(set(resource.prlimit(child.pid, resource.RLIMIT_NOFILE))) == 1
        assert probe("limit", pid=0, soft=1) == {"error": "EINVAL"}
        stop(child)

    isolated(body)


def test_probe_changes_what_a_process_waits_in(isolated: Isolated, programs: Path) -> None:
    def body() -> None:
        loopback_up()
        child = start(programs / "probe", PORT, namespaces=Namespace.MOUNT)
        waiting = (sys.executable, "-S", "-c", "import select; select.epoll().poll()")
        for kind, ends in (("jump", signal.SIGSEGV), ("error", 1)):
            victim = native.spawn(Spawn(waiting, {}))
            assert probe("fault", pid=victim.pid, kind=kind) == {"error": None}
            os.waitid(os.P_PIDFD, victim.pidfd, os.WEXITED | os.WNOWAIT)
            end = native.wait_pid(victim.pid)
            assert end is not None
            assert end.status == ends
        stop(child)

    isolated(body)


@pytest.fixture(scope="session")
def sha2(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """native/sha2.c as a shared library."""
    library = tmp_path_factory.mktemp("sha2") / "sha2.so"
    subprocess.run(["gcc", "-std=c17", "-O2", "-shared", "-fPIC", NATIVE / "sha2.c", "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("malloc_224", "malloc_256", "malloc_384", "malloc_512", "copy_256", "copy_512"):
        getattr(loaded, SHA2 + name).restype = ctypes.c_void_p
    return loaded


@settings(max_examples=100)
@given(parts=st.lists(st.binary(max_size=300), max_size=4), bits=st.sampled_from([224, 256, 384, 512]))
def test_sha2_is_sha2(sha2: ctypes.CDLL, parts: list[bytes], bits: int) -> None:
    """Against hashlib, in pieces, with a digest and a copy in between, as the _sha2 module uses it."""
    family, size, digest = max(256, bits if bits < 384 else 512), bits // 8, ctypes.create_string_buffer(64)

    def call(name: str, *arguments: object) -> int:
        return cast("int", getattr(sha2, f"{SHA2}{name}")(*arguments))

    state = ctypes.c_void_p(call(f"malloc_{bits}"))
    data = b""
    for part in parts:
        call(f"update_{family}", state, part, len(part))
        data += part
        copy = ctypes.c_void_p(call(f"copy_{family}", state))
        call(f"free_{family}", state)
        state = copy
        call(f"digest_{family}", state, digest)
        assert digest.raw[:size] == hashlib.new(f"sha{bits}", data).digest()
    call(f"free_{family}", state)
