"""The containers worker against a containerd in this process that speaks the same messages."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import socket
import tarfile
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from hypothesis import given
from hypothesis import strategies as st

from initd.api.protocol import ApiError, Code
from initd.containers import client as client_module
from initd.containers import cri, images, messages
from initd.containers.archive import INDEX_TYPES, MANIFEST_TYPES, ArchiveError, opened
from initd.containers.client import Containerd
from initd.containers.images import LABELS, import_images
from initd.containers.messages import FIELDS, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from initd.containers.messages import Rpc

NAME = "initd.local/pause:1"
DEADLINE = 20


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


# Archives


def descriptor(content: bytes, media_type: str, **more: object) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(content), **more}


def image_parts(name: str | None = NAME, layer: bytes = b"layer") -> tuple[dict[str, object], list[bytes]]:
    """An entry of index.json and the blobs behind it."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(layer, "application/vnd.oci.image.layer.v1.tar")],
        }
    ).encode()
    annotations = {} if name is None else {"io.containerd.image.name": name}
    return descriptor(manifest, MANIFEST_TYPES[0], annotations=annotations), [config, layer, manifest]


def write_archive(path: Path, index: object, blobs: list[bytes]) -> str:
    files = {"index.json": json.dumps(index).encode()}
    files |= {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in blobs}
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def pause_archive(path: Path, **parts: Any) -> str:
    entry, blobs = image_parts(**parts)
    return write_archive(path, {"schemaVersion": 2, "manifests": [entry]}, blobs)


def test_an_archive_lists_children_before_parents_with_labels_for_garbage_collection(tmp_path: Path) -> None:
    with opened(pause_archive(tmp_path / "pause.tar")) as archive:
        (image,) = archive.images()
        contents = [archive.blob(blob.target.digest).read() for blob in image.blobs]
    assert image.name == NAME
    assert contents == image_parts()[1]
    assert image.blobs[-1].target == image.target
    config, layer, manifest = image.blobs
    assert not config.labels
    assert manifest.labels == {
        "containerd.io/gc.ref.content.config": config.target.digest,
        "containerd.io/gc.ref.content.l.0": layer.target.digest,
    }


def test_an_index_may_lack_the_blobs_of_other_platforms(tmp_path: Path) -> None:
    entry, blobs = image_parts()
    other = descriptor(b"elsewhere", MANIFEST_TYPES[0])
    inner = json.dumps({"schemaVersion": 2, "manifests": [other, entry]}).encode()
    outer = descriptor(inner, INDEX_TYPES[0], annotations={"org.opencontainers.image.ref.name": NAME})
    with opened(write_archive(tmp_path / "a.tar", {"manifests": [outer]}, [*blobs, inner])) as archive:
        (image,) = archive.images()
    assert image.blobs[-1].labels == {"containerd.io/gc.ref.content.m.1": entry["digest"]}
    assert len(image.blobs) == 4


def broken(entry: dict[str, object], **change: object) -> dict[str, object]:
    return {"manifests": [{**entry, **change}]}


@pytest.mark.parametrize(
    ("change", "blobs", "expected"),
    [
        ({"annotations": {}}, 3, "manifests[0]: no name"),
        ({"size": 7}, 3, "expected 7"),
        ({"digest": "sha256:../../etc/passwd"}, 3, "digest: 'sha256:../../etc/passwd', expected sha256: and 64"),
        ({"mediaType": None}, 3, "mediaType: None, expected a text"),
        ({}, 0, "not in the archive"),
    ],
)
def test_an_error_names_the_archive_the_place_and_what_was_expected(
    tmp_path: Path, change: dict[str, object], blobs: int, expected: str
) -> None:
    entry, parts = image_parts()
    path = write_archive(tmp_path / "bad.tar", broken(entry, **change), parts[:blobs])
    with pytest.raises(ArchiveError) as error, opened(path) as archive:
        archive.images()
    assert path in str(error.value)
    assert expected in str(error.value)


@given(st.binary(max_size=2048))
def test_garbage_is_an_archive_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage") / "a.tar"
    path.write_bytes(data)
    with pytest.raises(ArchiveError), opened(str(path)) as archive:
        archive.images()


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_as_index_is_an_archive_error(tmp_path_factory: pytest.TempPathFactory, index: object) -> None:
    path = write_archive(tmp_path_factory.mktemp("garbage") / "a.tar", index, [])
    with pytest.raises(ArchiveError), opened(path) as archive:
        archive.images()


# Messages


def test_the_table_gives_the_bytes_that_protobuf_prescribes() -> None:
    request = MESSAGES["WriteContentRequest"](action=2, ref="r", offset=300, data=b"\0", labels={"a": "b"})
    wire = b"\x08\x02\x12\x01r\x28\xac\x02\x32\x01\x00\x3a\x06\x0a\x01a\x12\x01b"
    assert request.SerializeToString(deterministic=True) == wire
    assert MESSAGES["WriteContentRequest"].FromString(wire) == request


@pytest.mark.parametrize("name", FIELDS)
def test_messages_survive_a_round_trip_and_unknown_fields(name: str) -> None:
    empty = MESSAGES[name]()
    assert MESSAGES[name].FromString(empty.SerializeToString()) == empty
    MESSAGES[name].FromString(b"\xfa\x3f\x03new")  # field 1023, a text: what a newer server may add


# Calls


def nothing(_request: Any, _metadata: Any) -> dict[str, Any]:
    return {}


def one_after_another(answers: list[Callable[[Any, Any], Any]]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, metadata: Any) -> Any:
        return answers.pop(0)(request, metadata)

    return answer


class Fake:
    """A gRPC server on a socket that answers the given calls."""

    def __init__(self, path: Path, **calls: Callable[[Any, Any], Any]) -> None:
        self._path = str(path)
        self._calls: defaultdict[str, Callable[[Any, Any], Any]] = defaultdict(lambda: nothing, calls)
        self.seen: list[tuple[str, Any, dict[str, Any]]] = []

    def __mapping__(self) -> dict[str, Handler]:
        return {
            rpc.path: self._handler(name, rpc) for name, rpc in vars(messages).items() if isinstance(rpc, messages.Rpc)
        }

    def _handler(self, name: str, rpc: Rpc) -> Handler:
        async def answer(stream: Any) -> None:
            async for request in stream:
                self.seen.append((name, request, dict(stream.metadata)))
                reply = self._calls[name](request, stream.metadata)
                await stream.send_message(MESSAGES[rpc.reply](**reply))

        return Handler(answer, Cardinality.STREAM_STREAM, MESSAGES[rpc.request], MESSAGES[rpc.reply])

    async def __aenter__(self) -> Containerd:
        self._server = Server([self])
        await self._server.start(path=self._path)
        self._client = Containerd(self._path)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()
        await self._server.wait_closed()


def known(request: Any, _: Any) -> dict[str, Any]:
    config = json.loads(image_parts()[1][2])["config"]["digest"]
    return {"image": {"id": config, "repo_tags": [request.image.image], "pinned": True}}


def refuse(status: Status) -> Callable[[Any, Any], Any]:
    def answer(*_: object) -> Any:
        raise GRPCError(status, "as the test wants")

    return answer


def test_an_import_writes_blobs_then_the_name_under_a_lease(tmp_path: Path) -> None:
    fake = Fake(tmp_path / "c.sock", IMAGE_STATUS=known)

    async def main() -> list[images.ImportedImage]:
        async with fake as client:
            return await import_images(client, [pause_archive(tmp_path / "pause.tar")])

    (result,) = run(main())
    assert (result["name"], result["digest"]) == (NAME, image_parts()[0]["digest"])
    assert [name for name, *_ in fake.seen] == [
        "CREATE_LEASE",
        *["WRITE"] * 3,
        "CREATE_IMAGE",
        "DELETE_LEASE",
        "IMAGE_STATUS",
    ]
    assert [request.data for name, request, _ in fake.seen if name == "WRITE"] == image_parts()[1]
    lease = fake.seen[0][1].id
    for name, _, metadata in fake.seen[1:-2]:
        assert metadata["containerd-namespace"] == "k8s.io", name
        assert metadata["containerd-lease"] == lease, name
    stored = fake.seen[-3][1].image
    assert dict(stored.labels) == LABELS
    assert stored.target.digest == result["digest"]


def test_an_import_again_updates_the_name(tmp_path: Path) -> None:
    exists = refuse(Status.ALREADY_EXISTS)
    fake = Fake(tmp_path / "c.sock", IMAGE_STATUS=known, WRITE=exists, CREATE_IMAGE=exists)

    async def main() -> None:
        async with fake as client:
            await import_images(client, [pause_archive(tmp_path / "pause.tar")])

    run(main())
    (update,) = [request for name, request, _ in fake.seen if name == "UPDATE_IMAGE"]
    assert list(update.update_mask.paths) == ["target", "labels"]


def test_large_blobs_go_in_pieces_with_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CHUNK", 1000)
    monkeypatch.setattr(images, "KNOWN_SECONDS", 0)
    layer = bytes(range(250)) * 10
    fake = Fake(tmp_path / "c.sock")

    async def main() -> None:
        async with fake as client:
            await import_images(client, [pause_archive(tmp_path / "pause.tar", layer=layer)])

    with pytest.raises(ApiError, match=f"CRI does not know {NAME}"):
        run(main())
    digest = descriptor(layer, "")["digest"]
    pieces = [request for name, request, _ in fake.seen if name == "WRITE" and request.expected == digest]
    assert b"".join(piece.data for piece in pieces) == layer
    assert [(piece.offset, piece.action) for piece in pieces] == [(0, 1), (1000, 1), (2000, 2)]


def test_cri_is_asked_until_it_has_recovered_and_knows_the_image(tmp_path: Path) -> None:
    answers = [refuse(Status.UNAVAILABLE), nothing, known]
    fake = Fake(tmp_path / "c.sock", IMAGE_STATUS=one_after_another(answers))

    async def main() -> None:
        async with fake as client:
            await import_images(client, [pause_archive(tmp_path / "pause.tar")])

    run(main())
    assert not answers


def test_a_bad_archive_does_not_keep_the_others_out(tmp_path: Path) -> None:
    fake = Fake(tmp_path / "c.sock", IMAGE_STATUS=known)
    bad = str(tmp_path / "missing.tar")

    async def main() -> None:
        async with fake as client:
            await import_images(client, [bad, pause_archive(tmp_path / "pause.tar")])

    with pytest.raises(ApiError, match=r"missing\.tar") as error:
        run(main())
    assert error.value.code is Code.INVALID_ARGUMENT
    assert [request.image.name for name, request, _ in fake.seen if name == "CREATE_IMAGE"] == [NAME]


def test_an_import_that_containerd_leaves_in_the_middle_starts_again(tmp_path: Path) -> None:
    answers = [nothing, refuse(Status.UNAVAILABLE), nothing, nothing, nothing]
    fake = Fake(tmp_path / "c.sock", IMAGE_STATUS=known, WRITE=one_after_another(answers))

    async def main() -> Any:
        async with fake as client:
            return await import_images(client, [pause_archive(tmp_path / "pause.tar")])

    assert [image["name"] for image in run(main())] == [NAME]
    assert not answers


def test_the_lease_is_given_up_when_a_write_fails(tmp_path: Path) -> None:
    fake = Fake(tmp_path / "c.sock", WRITE=refuse(Status.DATA_LOSS))

    async def main() -> None:
        async with fake as client:
            await import_images(client, [pause_archive(tmp_path / "pause.tar")])

    with pytest.raises(ApiError, match=r"Content/Write: as the test wants") as error:
        run(main())
    assert error.value.code is Code.DATA_LOSS
    assert [name for name, *_ in fake.seen] == ["CREATE_LEASE", "WRITE", "DELETE_LEASE"]


# Lists

SECOND = 10**9
METADATA = {"name": "web", "namespace": "default", "uid": "u1"}


def pod_calls() -> dict[str, Callable[[Any, Any], Any]]:
    statuses = {
        "new": {"state": 1, "created_at": 21 * SECOND, "started_at": 22 * SECOND, "image": {"image": "sha256:1"}},
        "side": {"state": 2, "created_at": 20 * SECOND, "exit_code": 3, "reason": "Error"},
    }
    containers = [
        {"id": "new", "pod_sandbox_id": "p2", "metadata": {"name": "http", "attempt": 2}, "created_at": 21},
        {"id": "old", "pod_sandbox_id": "p2", "metadata": {"name": "http", "attempt": 1}, "created_at": 20},
        {"id": "side", "pod_sandbox_id": "p2", "metadata": {"name": "side"}, "created_at": 20},
        {"id": "gone", "pod_sandbox_id": "p1", "metadata": {"name": "http"}, "created_at": 10},
    ]
    containers[0]["image"] = {"image": "sha256:1", "user_specified_image": "initd.local/http:1"}
    sandboxes = [
        {"id": "p2", "metadata": {**METADATA, "attempt": 1}, "created_at": 20 * SECOND},
        {"id": "p1", "metadata": METADATA, "state": 1, "created_at": 10 * SECOND},
        {"id": "p0", "metadata": {**METADATA, "name": "deleted"}, "created_at": 5 * SECOND},
    ]

    def pod_status(request: Any, _: Any) -> dict[str, Any]:
        if request.pod_sandbox_id == "p0":
            raise GRPCError(Status.NOT_FOUND, "removed meanwhile")
        return {"status": {"id": request.pod_sandbox_id, "network": {"ip": "10.88.0.2"}}}

    return {
        "LIST_PODS": lambda *_: {"items": sandboxes},
        "LIST_CONTAINERS": lambda *_: {"containers": containers},
        "POD_STATUS": pod_status,
        "CONTAINER_STATUS": lambda request, _: {"status": statuses[request.container_id]},
    }


def test_pods_are_listed_with_the_newest_run_of_each_container(tmp_path: Path) -> None:
    async def main() -> Any:
        async with Fake(tmp_path / "c.sock", **pod_calls()) as client:
            return await cri.pods(client)

    (pod,) = run(main())
    http, side = pod.pop("containers")
    assert pod == {**METADATA, "id": "p2", "state": "ready", "address": "10.88.0.2", "created": 20.0}
    assert (http["id"], http["state"], http["restarts"], http["started"]) == ("new", "running", 2, 22.0)
    assert (http["image"], http["exit_code"]) == ("initd.local/http:1", None)
    assert (side["state"], side["started"], side["exit_code"], side["reason"]) == ("exited", None, 3, "Error")


def test_images_are_listed_by_name(tmp_path: Path) -> None:
    listed = [
        {"id": "sha256:2", "repo_digests": ["z@sha256:3"], "size": 5},
        {"id": "sha256:1", "repo_tags": [NAME], "repo_digests": ["x"], "size": 4, "pinned": True},
    ]

    async def main() -> Any:
        async with Fake(tmp_path / "c.sock", LIST_IMAGES=lambda *_: {"images": listed}) as client:
            return await cri.images(client)

    assert run(main()) == [
        {"id": "sha256:1", "names": [NAME], "size_bytes": 4, "pinned": True},
        {"id": "sha256:2", "names": ["z@sha256:3"], "size_bytes": 5, "pinned": False},
    ]


# Failures


@pytest.mark.parametrize("listening", [False, True])
def test_an_unreachable_containerd_is_named_after_the_deadline(tmp_path: Path, listening: bool) -> None:
    path = tmp_path / "c.sock"
    if listening:  # a socket that a dead containerd left behind
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    client = Containerd(str(path))
    with pytest.raises(ApiError, match=rf"containerd: not reachable at {path} within 0\.1 s: ") as error:
        run(client.reach(0.1))
    assert error.value.code is Code.UNAVAILABLE


async def call_against(
    path: Path, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> None:
    """Make one call to a server that does whatever `answer` does."""
    server = await asyncio.start_unix_server(answer, path)
    client = Containerd(str(path))
    try:
        await client.call(messages.LIST_IMAGES)
    finally:
        client.close()
        server.close()


@given(st.binary(max_size=512))
def test_garbage_instead_of_http2_is_an_error_and_no_hang(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        writer.close()

    with pytest.raises(ApiError, match="ImageService/ListImages"):
        run(call_against(tmp_path_factory.mktemp("g") / "c.sock", answer))


def test_a_server_that_never_answers_meets_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CALL_SECONDS", 0.1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with pytest.raises(ApiError, match=r"no answer within 0\.1 s") as error:
        run(call_against(tmp_path / "c.sock", answer))
    assert error.value.code is Code.DEADLINE_EXCEEDED


@given(st.binary(min_size=1, max_size=64))
def test_an_answer_that_is_no_protobuf_is_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    class Garbage:
        def SerializeToString(self) -> bytes:  # noqa: N802
            return data

    class Codec(ProtoCodec):
        def encode(self, message: Any, message_type: Any) -> bytes:  # noqa: ARG002
            return bytes(message.SerializeToString())

    async def main() -> None:
        path = str(tmp_path_factory.mktemp("g") / "c.sock")

        async def answer(stream: Any) -> None:
            await stream.recv_message()
            await stream.send_message(Garbage())

        class Service:
            def __mapping__(self) -> dict[str, Handler]:
                rpc = messages.LIST_IMAGES
                return {rpc.path: Handler(answer, Cardinality.UNARY_UNARY, MESSAGES[rpc.request], MESSAGES[rpc.reply])}

        server = Server([Service()], codec=Codec())
        await server.start(path=path)
        client = Containerd(path)
        try:
            reply = await client.call(messages.LIST_IMAGES)
            assert reply.SerializeToString() is not None  # some garbage is a message
        except ApiError as error:
            assert error.code is Code.INTERNAL  # noqa: PT017
            assert "not the message expected" in error.message  # noqa: PT017
        finally:
            client.close()
            server.close()
            await server.wait_closed()

    run(main())
