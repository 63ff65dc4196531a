"""The containers worker against a containerd in this process that speaks the same messages."""

from __future__ import annotations

import asyncio
import socket
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
from initd.containers import cri, images, messages
from initd.containers.client import Containerd
from initd.containers.images import IMPORT_LABEL, LABELS, import_images
from initd.containers.messages import FIELDS, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from initd.containers.messages import Rpc

NAME = "initd.local/pause:1"
DEADLINE = 20


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


# Messages


def test_the_table_gives_the_bytes_that_protobuf_prescribes() -> None:
    store = MESSAGES["ImageStore"](
        labels=[{"key": "a", "value": "b"}], extra_references=[{"name": "n", "is_prefix": True}]
    )
    wire = b"\x12\x06\x0a\x01a\x12\x01b\x32\x05\x0a\x01n\x10\x01"
    assert store.SerializeToString(deterministic=True) == wire
    assert MESSAGES["ImageStore"].FromString(wire) == store


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
        self._sent = asyncio.Event()
        self.window = 1000
        self.archive = b""
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

        async def transfer(stream: Any) -> None:
            await asyncio.wait_for(self._sent.wait(), DEADLINE)
            await answer(stream)

        async def receive(stream: Any) -> None:
            """As containerd does: room for a little more with each piece that came."""
            await stream.recv_message()
            await stream.send_message(MESSAGES["Any"]())
            room = 0
            while True:
                room += self.window
                update = MESSAGES["WindowUpdate"](update=self.window).SerializeToString()
                await stream.send_message(MESSAGES["Any"](value=update))
                if (message := await stream.recv_message()) is None:
                    break
                data = MESSAGES["Data"].FromString(message.value).data
                room -= len(data)
                assert room >= 0
                self.archive += data
            self._sent.set()

        handler = {"STREAM": receive, "TRANSFER": transfer}.get(name, answer)
        return Handler(handler, Cardinality.STREAM_STREAM, MESSAGES[rpc.request], MESSAGES[rpc.reply])

    async def __aenter__(self) -> Containerd:
        self._server = Server([self])
        await self._server.start(path=self._path)
        self._client = Containerd(self._path)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()
        await self._server.wait_closed()


def stored(*_: object) -> dict[str, Any]:
    return {"images": [{"name": NAME, "target": {"digest": "sha256:1"}}]}


def known(*_: object) -> dict[str, Any]:
    return {"images": [{"id": "sha256:2", "repo_tags": [NAME], "pinned": True}]}


def refuse(status: Status) -> Callable[[Any, Any], Any]:
    def answer(*_: object) -> Any:
        raise GRPCError(status, "as the test wants")

    return answer


def imported(fake: Fake, *paths: Path) -> Any:
    async def main() -> Any:
        async with fake as client:
            return await import_images(client, list(map(str, paths)))

    return run(main())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "pause.tar"
    path.write_bytes(bytes(range(250)) * 10)
    return path


@pytest.mark.parametrize("window", [1, 1000, 1 << 20])
def test_an_archive_goes_to_containerd_as_it_has_room(tmp_path: Path, archive: Path, window: int) -> None:
    fake = Fake(tmp_path / "c.sock", LIST_STORED=stored, LIST_IMAGES=known)
    fake.window = window
    (result,) = imported(fake, archive)
    assert (result["name"], result["digest"]) == (NAME, "sha256:1")
    assert fake.archive == archive.read_bytes()
    (transfer, metadata), (listing, _) = ((request, metadata) for _, request, metadata in fake.seen[:2])
    assert metadata["containerd-namespace"] == "k8s.io"
    store = MESSAGES["ImageStore"].FromString(transfer.destination.value)
    labels = {label.key: label.value for label in store.labels}
    assert LABELS.items() <= labels.items()
    assert labels[IMPORT_LABEL] in listing.filters[0]


def test_cri_is_asked_until_it_has_recovered_and_knows_the_image(tmp_path: Path, archive: Path) -> None:
    answers = [refuse(Status.UNAVAILABLE), nothing, known]
    imported(Fake(tmp_path / "c.sock", LIST_STORED=stored, LIST_IMAGES=one_after_another(answers)), archive)
    assert not answers


def test_an_image_that_cri_never_sees_is_named(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "KNOWN_SECONDS", 0.1)
    with pytest.raises(ApiError, match=f"CRI does not know {NAME}"):
        imported(Fake(tmp_path / "c.sock", LIST_STORED=stored), archive)


def test_a_bad_archive_does_not_keep_the_others_out(tmp_path: Path, archive: Path) -> None:
    fake = Fake(tmp_path / "c.sock", LIST_STORED=stored, LIST_IMAGES=known)
    with pytest.raises(ApiError, match=r"missing\.tar") as error:
        imported(fake, tmp_path / "missing.tar", archive)
    assert error.value.code is Code.INVALID_ARGUMENT
    assert fake.archive == archive.read_bytes()


def test_an_archive_without_a_named_image_is_an_error(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(ApiError, match=r"pause\.tar: no image") as error:
        imported(Fake(tmp_path / "c.sock"), archive)
    assert error.value.code is Code.INVALID_ARGUMENT


def test_what_containerd_says_of_an_archive_is_passed_on(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(ApiError, match=r"pause\.tar: .*Transfer: as the test wants") as error:
        imported(Fake(tmp_path / "c.sock", TRANSFER=refuse(Status.DATA_LOSS)), archive)
    assert error.value.code is Code.DATA_LOSS


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
    path: Path, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], seconds: float = 10
) -> None:
    """Make one call to a server that does whatever `answer` does."""
    server = await asyncio.start_unix_server(answer, path)
    client = Containerd(str(path))
    try:
        await client.call(messages.LIST_IMAGES, seconds=seconds)
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


def test_a_server_that_never_answers_meets_the_deadline(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with pytest.raises(ApiError, match=r"no answer within 0\.1 s") as error:
        run(call_against(tmp_path / "c.sock", answer, seconds=0.1))
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


def test_containers_get_their_pods_grace_up_to_what_there_is(tmp_path: Path) -> None:
    def running(name: str, grace: str | None, state: int = 1) -> dict[str, Any]:
        notes = [] if grace is None else [{"key": "io.kubernetes.pod.terminationGracePeriod", "value": grace}]
        return {"id": name, "metadata": {"name": name}, "state": state, "annotations": notes}

    listed = [
        running("two", "2"),
        running("long", "600"),
        running("none", None),
        running("odd", "x"),
        running("gone", "1", 2),
    ]

    def stop(request: Any, _metadata: Any) -> dict[str, Any]:
        if request.container_id == "odd":
            raise GRPCError(Status.INTERNAL, "stuck")
        return {}

    async def main() -> None:
        fake = Fake(tmp_path / "s", LIST_CONTAINERS=lambda _r, _m: {"containers": listed}, STOP_CONTAINER=stop)
        async with fake as client:
            assert await cri.stop(client, 20.5) == 4
        asked = {request.container_id: request.timeout for name, request, _ in fake.seen if name == "STOP_CONTAINER"}
        assert asked == {"two": 2, "long": 20, "none": 20, "odd": 20}

    run(main())
