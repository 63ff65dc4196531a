"""The containers worker against the real containerd, in namespaces and folders of its own.

Its programs are those that the image has.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from initd.api.protocol import ApiError, Code, Decoder, Request, Response, encode
from initd.containers import cri
from initd.containers.client import Containerd
from initd.containers.images import import_images
from rootfs import build
from rootfs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from initd.api.protocol import Message

pytestmark = pytest.mark.root

NAME = "initd.local/pause:1"
OTHER = "initd.local/other:2"
DEADLINE = 60
NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
CONFIG = """
version = 3
root = '{folder}/root'
state = '{folder}/state'
disabled_plugins = ['io.containerd.nri.v1.nri']
[grpc]
address = '{folder}/c.sock'
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{name}'
[plugins.'io.containerd.cri.v1.runtime'.cni]
conf_dir = '{folder}/cni'
"""


def programs() -> Path:
    return build.programs(Progress())


@dataclass
class Daemon:
    """A containerd that can be started on what the last one left."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return str(self.folder / "c.sock")

    def start(self) -> None:
        binaries = programs()
        config = self.folder / "config.toml"
        config.write_text(CONFIG.format(folder=self.folder, name=NAME))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*NAMESPACES, str(binaries / "containerd"), "--config", str(config)],
                stdout=log,
                stderr=log,
                env={"PATH": f"{binaries}:/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
            )

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    # A socket's path has 108 bytes at most, which pytest's own folders can exceed.
    folder = Path(tempfile.mkdtemp(prefix="containerd-"))
    daemon = Daemon(folder)
    try:
        yield daemon
    finally:
        daemon.stop()
        sys.stdout.write((folder / "log").read_text() if (folder / "log").exists() else "")
        shutil.rmtree(folder, ignore_errors=True)


def layer() -> bytes:
    """A layer with one file, large enough to need several messages."""
    content = bytes(range(256)) * 10240
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("pause")
        member.size, member.mode = len(content), 0o755
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def archive(path: Path, name: str = NAME, entrypoint: str = "/pause") -> str:
    """Write an OCI archive with one image and return its path."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    files = layer()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [entrypoint]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(files).hexdigest()}"]},
    }
    prefix = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{prefix}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{prefix}.config.v1+json"),
        "layers": [blob(files, f"{prefix}.layer.v1.tar")],
    }
    entry = blob(json.dumps(manifest).encode(), f"{prefix}.manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": name}
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    with tarfile.open(path, "w") as tar:
        for file, content in blobs.items():
            member = tarfile.TarInfo(file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


def test_images_are_known_to_cri_pinned_and_survive_a_restart(daemon: Daemon) -> None:
    paths = [archive(daemon.folder / "a.tar"), archive(daemon.folder / "b.tar", OTHER, "/other")]

    async def importing(client: Containerd) -> Any:
        while True:
            try:
                results = await import_images(client, paths)
            except ApiError as error:
                if error.code is not Code.UNAVAILABLE:  # the old containerd went away in the middle; PID 1 asks again
                    raise
            else:
                break
        return results, await cri.images(client), await cri.pods(client)

    async def main() -> tuple[Any, Any]:
        client = Containerd(daemon.socket)
        first = asyncio.create_task(importing(client))  # before containerd is there, as at boot
        daemon.start()
        results, images, pods = await first
        assert [result["name"] for result in results] == [NAME, OTHER]
        assert pods == []
        again, after, _ = await importing(client)
        assert [r["digest"] for r in again] == [r["digest"] for r in results]
        assert after == images
        daemon.stop()
        daemon.start()
        restarted, kept, _ = await importing(client)  # on the same client, whose connection is gone
        client.close()
        assert [r["digest"] for r in restarted] == [r["digest"] for r in results]
        return images, kept

    images, kept = run(main())
    assert images == kept
    assert [(image["names"], image["pinned"]) for image in images] == [([OTHER], True), ([NAME], True)]
    assert images[0]["id"] != images[1]["id"]


def test_what_is_no_archive_is_refused_by_name_and_keeps_no_other_out(daemon: Daemon) -> None:
    garbage, cut, unnamed = (daemon.folder / f"{name}.tar" for name in ("garbage", "cut", "unnamed"))
    garbage.write_bytes(b"garbage" * 4096)
    cut.write_bytes(Path(archive(cut)).read_bytes()[:100_000])
    paths = [str(daemon.folder / "missing.tar"), str(garbage), str(cut), archive(unnamed, name="")]
    daemon.start()

    async def main() -> Any:
        client = Containerd(daemon.socket)
        try:
            for path in paths:
                with pytest.raises(ApiError, match=Path(path).name):
                    await import_images(client, [path, archive(daemon.folder / "a.tar")])
            return await cri.images(client)
        finally:
            client.close()

    assert [image["names"] for image in run(main())] == [[NAME]]


def test_the_worker_answers_over_its_link() -> None:
    """The process as PID 1 starts it, without a containerd: a clear error, an end when PID 1 closes."""
    parent, child = socket.socketpair()
    code = (
        "import sys; from initd.containers import cri; cri.REACH_SECONDS = 0.1; "
        "from initd.worker import main; sys.exit(main('containers'))"
    )
    with parent, child:
        fd = child.fileno()
        worker = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.dup2({fd}, 3); {code}"], pass_fds=[fd], stderr=subprocess.PIPE
        )
        child.close()
        parent.settimeout(DEADLINE)
        parent.sendall(encode(Request(1, "pods", [])) + encode(Request(2, "import_images", [["/missing.tar"]])))
        decoder = Decoder()
        answers: list[Message] = []
        while not answers:
            answers += decoder.feed(parent.recv(65536))
    assert isinstance(answers[0], Response)
    assert isinstance(answers[0].error, list)
    assert answers[0].error[0] == "UNAVAILABLE"
    assert "not reachable at /run/containerd/containerd.sock within 0.1 s: No such file" in answers[0].error[1]
    _, log = worker.communicate(timeout=DEADLINE)
    assert worker.returncode == 0, log
