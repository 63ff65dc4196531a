"""The registry, asked as the distribution specification has a client ask."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from native import oci
from qemu.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = b"x" * 3_000_000  # more than one chunk


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    for name in ("web:1", "deep/er/web:2.0"):
        image = oci.Image(f"cluster.initd.test/{name}", {"/web": oci.File(CONTENT)}, (name,))
        oci.write(tmp_path / f"{name.replace('/', '-')}.tar", image)
    with Registry(tmp_path) as running:
        yield running


def ask(registry: Registry, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(("name", "tag"), [("web", "1"), ("deep/er/web", "2.0")])
def test_an_image_is_pulled_by_tag_then_by_digest(registry: Registry, name: str, tag: str) -> None:
    status, headers, manifest = ask(registry, f"/v2/{name}/manifests/{tag}?ns=cluster.initd.test")
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    assert (status, headers["Docker-Content-Digest"]) == (200, digest)
    assert headers["Content-Type"] == "application/vnd.oci.image.manifest.v1+json" == json.loads(manifest)["mediaType"]
    assert ask(registry, f"/v2/{name}/manifests/{digest}")[2] == manifest
    described = json.loads(manifest)
    blobs = {}
    for descriptor in (described["config"], *described["layers"]):
        status, _, blob = ask(registry, f"/v2/{name}/blobs/{descriptor['digest']}")
        assert (status, len(blob)) == (200, descriptor["size"])
        assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == descriptor["digest"]
        blobs[descriptor["mediaType"]] = blob
    assert json.loads(blobs["application/vnd.oci.image.config.v1+json"])["config"]["Entrypoint"] == [f"{name}:{tag}"]
    with tarfile.open(fileobj=io.BytesIO(blobs["application/vnd.oci.image.layer.v1.tar"])) as layer:
        file = layer.extractfile("web")
        assert file is not None
        assert file.read() == CONTENT


def test_head_says_what_get_would(registry: Registry) -> None:
    path = "/v2/web/manifests/1"
    (_, got, manifest), (status, headers, nothing) = ask(registry, path), ask(registry, path, "HEAD")
    assert (status, nothing) == (200, b"")
    names = ("Content-Length", "Content-Type", "Docker-Content-Digest")
    assert [headers[name] for name in names] == [got[name] for name in names]
    assert headers["Content-Length"] == str(len(manifest))


def test_the_version_check_is_answered(registry: Registry) -> None:
    assert ask(registry, "/v2/")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/web/manifests/2",  # another image's tag
        "/v2/none/manifests/1",
        f"/v2/web/blobs/sha256:{'0' * 64}",
        "/v2/web/../web/manifests/1",
        "/v2/web/tags/list",
        "/",
    ],
)
def test_what_is_not_there_is_an_error_in_the_specification_s_form(registry: Registry, path: str) -> None:
    status, headers, body = ask(registry, path)
    assert (status, headers["Content-Type"]) == (404, "application/json")
    assert json.loads(body)["errors"][0]["code"] == "NAME_UNKNOWN"


def test_a_connection_is_kept_between_requests(registry: Registry) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=10)
    for path in ("/v2/", "/v2/none/manifests/1", "/v2/web/manifests/1"):
        connection.request("GET", path)
        kept = connection.sock
        connection.getresponse().read()
        assert connection.sock is kept
    connection.close()


def test_an_archive_without_names_is_refused_at_the_start(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("hello"))
    with pytest.raises(ValueError, match=r"other\.tar is no OCI archive"):
        Registry(tmp_path)
