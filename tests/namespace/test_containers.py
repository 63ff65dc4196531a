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

from initd.api.protocol import ApiError, Decoder, Request, Response, encode
from initd.containers import cri, messages
from initd.containers.client import Containerd
from initd.containers.images import NAMESPACE, import_images
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
        results = await import_images(client, paths)
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


def test_a_name_moves_to_the_new_image(daemon: Daemon) -> None:
    paths = [archive(daemon.folder / "a.tar"), archive(daemon.folder / "b.tar", NAME, "/newer")]
    daemon.start()

    async def main() -> Any:
        client = Containerd(daemon.socket)
        for path in paths:
            await import_images(client, [path])
        stored = await client.call(messages.GET_IMAGE, {"name": NAME}, {"containerd-namespace": NAMESPACE})
        listed = await cri.images(client)
        client.close()
        return stored.image.target.digest, listed

    digest, listed = run(main())
    with tarfile.open(paths[1]) as tar:
        file = tar.extractfile("index.json")
        assert file is not None
        assert json.load(file)["manifests"][0]["digest"] == digest
    assert [image["names"] for image in listed if image["names"]] == [[NAME]]


def test_a_wrong_digest_is_refused_by_name(daemon: Daemon) -> None:
    path = Path(archive(daemon.folder / "a.tar"))
    data = bytearray(path.read_bytes())
    start = data.index(bytes(range(256)) * 2)
    data[start] ^= 1
    path.write_bytes(data)
    daemon.start()

    async def main() -> None:
        client = Containerd(daemon.socket)
        try:
            await import_images(client, [str(path)])
        finally:
            client.close()

    with pytest.raises(ApiError, match=r"Content/Write: .*digest"):
        run(main())


def test_the_worker_answers_over_its_link() -> None:
    """The process as PID 1 starts it, without a containerd: a clear error, an end when PID 1 closes."""
    parent, child = socket.socketpair()
    code = "import sys; from initd.worker import main; sys.exit(main('containers'))"
    with parent, child:
        fd = child.fileno()
        worker = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.dup2({fd}, 3); {code}"], pass_fds=[fd], stderr=subprocess.PIPE
        )
        child.close()
        parent.settimeout(DEADLINE)
        parent.sendall(
            encode(Request(1, "import_images", [3])) + encode(Request(2, "import_images", [["/missing.tar"]]))
        )
        decoder = Decoder()
        answers: list[Message] = []
        while not answers:
            answers += decoder.feed(parent.recv(65536))
    assert isinstance(answers[0], Response)
    assert answers[0].error == ["INVALID_ARGUMENT", "import_images: paths: 3, expected a list of texts"]
    _, log = worker.communicate(timeout=DEADLINE)
    assert worker.returncode == 0, log
