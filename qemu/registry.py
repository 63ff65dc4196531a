"""A read-only image registry on 127.0.0.1 (OCI distribution-spec 1.1, pull), from folders of OCI archives.

A node reaches it at 10.0.2.2 through QEMU's user network and takes it for a mirror of the registry that the archives'
names say: whatever host an image has in its name, it is found by the rest.
"""

from __future__ import annotations

import json
import re
import tarfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGISTRY = "cluster.initd.test"  # in the names of the images that are made for the harness
CHUNK = 1 << 20
NAMES = "io.containerd.image.name"
_REQUEST = re.compile(r"/v2/(?P<name>[a-z0-9./_-]+)/(?P<kind>manifests|blobs)/(?P<reference>[A-Za-z0-9._:-]+)")


@dataclass(frozen=True)
class _Blob:
    archive: Path
    offset: int  # bytes from the archive's start
    size: int
    media: str = "application/octet-stream"
    digest: str = ""


def _images(archive: Path) -> Iterator[tuple[str, _Blob]]:
    """What can be asked of one archive: NAME/manifests/TAG and NAME/KIND/DIGEST. Raises ValueError for what is none."""
    with tarfile.open(archive, "r:") as tar:
        try:
            members = {member.name: member for member in tar}
            index = json.load(tar.extractfile(members["index.json"]))  # type: ignore[arg-type]
            for listed in index["manifests"]:
                _, _, name = listed["annotations"][NAMES].partition("/")
                repository, _, tag = name.rpartition(":")
                blobs = [
                    (member, f"sha256:{path.rpartition('/')[2]}") for path, member in members.items() if "/" in path
                ]
                for member, digest in blobs:
                    manifest = digest == listed["digest"]
                    media = listed["mediaType"] if manifest else _Blob.media
                    blob = _Blob(archive, member.offset_data, member.size, media, digest)
                    yield f"{repository}/{'manifests' if manifest else 'blobs'}/{digest}", blob
                    if manifest:
                        yield f"{repository}/manifests/{tag}", blob
        except (KeyError, TypeError) as error:
            raise ValueError(f"{archive} is no OCI archive with named images: {error!r}") from None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        match = _REQUEST.fullmatch(path)
        blob = self.server.blobs.get("{name}/{kind}/{reference}".format(**match.groupdict())) if match else None
        if blob is None:
            known = path == "/v2/"
            text = b"{}" if known else b'{"errors": [{"code": "NAME_UNKNOWN", "message": "not in this registry"}]}'
            self._head(HTTPStatus.OK if known else HTTPStatus.NOT_FOUND, "application/json", len(text))
            if body:
                self.wfile.write(text)
            return
        self._head(HTTPStatus.OK, blob.media, blob.size, blob.digest)
        if body:
            with blob.archive.open("rb") as file, suppress(ConnectionError):  # a node may be killed while it pulls
                file.seek(blob.offset)
                left = blob.size
                while left and (part := file.read(min(left, CHUNK))):
                    self.wfile.write(part)
                    left -= len(part)

    def _head(self, status: HTTPStatus, media: str, size: int, digest: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(size))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    blobs: dict[str, _Blob]


class Registry:
    """Serves the images of folders from now until close(). Raises ValueError for an archive that is none."""

    def __init__(self, *folders: Path) -> None:
        archives = [archive for folder in folders for archive in sorted(folder.glob("*.tar"))]
        blobs = dict(entry for archive in archives for entry in _images(archive))
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.blobs = blobs
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="registry", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
