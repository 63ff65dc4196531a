"""Requests over real TLS: who asks, what becomes of an answer, and in which words each failure is told."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from initd.api.protocol import ApiError, Code
from initd.cluster import server as cluster_server
from initd.cluster.server import Server
from qemu.cluster import pki
from tests.unit.cluster_fakes import Https, Request, certificate_file, https

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOUR = dt.timedelta(hours=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> pki.Authority:
    made = pki.Authority(tmp_path_factory.mktemp("pki"))
    made.issue("server", "kube-apiserver", hosts=["127.0.0.1"])
    made.issue("elsewhere", "kube-apiserver", hosts=["192.0.2.1"])
    made.issue("node", "system:node:node-1", ["system:nodes"])
    patch = pytest.MonkeyPatch()
    for name, earlier, life in (("expired", 2 * HOUR, -HOUR), ("future", -HOUR, 2 * HOUR)):
        patch.setattr(pki, "_EARLIER", earlier)
        patch.setattr(pki, "_LIFE", life)
        made.issue(name, "kube-apiserver", hosts=["127.0.0.1"])
    patch.undo()
    return made


@pytest.fixture
def remote(authority: pki.Authority) -> Iterator[Https]:
    with https(authority) as made:
        yield made


def config(authority: pki.Authority, url: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": "node-1",
        "boot_id": "boot-2",
        "server": url,
        "ca": authority.certificate.read_text(),
        "token": "abcdef.0123456789abcdef",
        **fields,
    }


def get(server: Server) -> Any:
    return asyncio.run(server.request("get the node", "GET", "/api/v1/nodes/node-1"))


def failure(server: Server) -> tuple[Code, str]:
    with pytest.raises(ApiError) as caught:
        get(server)
    return caught.value.code, caught.value.message


def test_the_user_is_the_token_or_the_certificate(authority: pki.Authority, remote: Https, tmp_path: Path) -> None:
    remote.answer = lambda _request: (200, {"metadata": {"name": "node-1"}, "spec": {"unschedulable": True}})
    found = get(Server(config(authority, remote.url)))
    assert (found.metadata.name, found.spec.unschedulable) == ("node-1", True)
    get(Server(config(authority, remote.url), certificate_file(authority, tmp_path, "node")))
    texts = {
        key: (authority.folder / f"node.{end}").read_text() for key, end in (("certificate", "crt"), ("key", "key"))
    }
    get(Server(config(authority, f"{remote.url}/clusters/one/", token=None, **texts)))
    by = [(request.headers.get("Authorization"), request.user) for request in remote.requests]
    node = (None, "system:node:node-1")
    assert by == [("Bearer abcdef.0123456789abcdef", None), node, node]
    assert remote.requests[2].path == "/clusters/one/api/v1/nodes/node-1"


def test_bodies_have_their_kind_and_nodes_act_as_another(authority: pki.Authority, remote: Https) -> None:
    server = Server(config(authority, remote.url))
    remote.answer = lambda _request: (201, {"kind": "Status", "status": "Success"})
    patch = server.request("x", "PATCH", "/x", {"spec": None}, kind=cluster_server.MERGE, acting_as="somebody")
    asyncio.run(patch)
    (request,) = remote.requests
    assert (request.method, request.body) == ("PATCH", {"spec": None})
    assert request.headers["Content-Type"] == "application/merge-patch+json"
    assert request.headers["Impersonate-User"] == "somebody"


def test_a_list_comes_in_parts(authority: pki.Authority, remote: Https) -> None:
    def answer(request: Request) -> tuple[int, Any]:
        last = "continue=a%2Fb" in request.path
        items = [{"metadata": {"name": "two" if last else "one"}}]
        return 200, {"items": items, "metadata": {} if last else {"continue": "a/b"}}

    async def whole() -> list[str]:
        return [item.metadata.name async for item in server.pages("list pods", "/pods?fieldSelector=x")]

    remote.answer = answer
    server = Server(config(authority, remote.url))
    assert asyncio.run(whole()) == ["one", "two"]
    remote.answer = lambda _request: (200, {"metadata": {"continue": "for ever"}})
    with pytest.raises(ApiError, match="more than 200 pages"):
        asyncio.run(whole())


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("expired", "certificate has expired", r"; the time here is \d{4}-\d\d-\d\d, \d\d h UTC"),
        ("future", "certificate is not yet valid", r"; the time here is \d{4}-\d\d-\d\d, \d\d h UTC"),
        ("elsewhere", "IP address mismatch, certificate is not valid for '127.0.0.1'", r"\."),
    ],
)
def test_a_certificate_that_is_wrong(authority: pki.Authority, name: str, code: str, text: str) -> None:
    with https(authority, name) as remote:
        found = failure(Server(config(authority, remote.url)))
    assert found[0] is Code.UNAVAILABLE
    wanted = rf"API server {re.escape(remote.url)}: certificate verify failed: {re.escape(code)}{text}"
    assert re.fullmatch(wanted, found[1])


def test_a_ca_that_is_another(remote: Https, tmp_path: Path) -> None:
    other = pki.Authority(tmp_path)
    text = "certificate verify failed: certificate signature failure"  # both have one name
    assert failure(Server(config(other, remote.url))) == (Code.UNAVAILABLE, f"API server {remote.url}: {text}")
    assert remote.requests == [], "the token was shown to a stranger"


def test_nobody_there_and_nobody_who_answers(authority: pki.Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_server, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        server = Server(config(authority, url))
        assert failure(server) == (Code.UNAVAILABLE, f"API server {url}: unreachable: no answer in 0.2 s")
    assert failure(server) == (Code.UNAVAILABLE, f"API server {url}: unreachable: Connection refused")


@pytest.mark.parametrize("end", [False, True])
def test_a_server_that_never_comes_to_an_end(
    authority: pki.Authority, remote: Https, monkeypatch: pytest.MonkeyPatch, end: bool
) -> None:
    ended = threading.Event()

    def drip(request: Request) -> None:
        wait = threading.Event()
        try:
            for _ in range(1000):
                request.handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" if end else b"H")
                wait.wait(0.02)
        except OSError:
            ended.set()

    monkeypatch.setattr(cluster_server, "SECONDS", 0.3)
    remote.answer = drip
    assert failure(Server(config(authority, remote.url)))[1].endswith(": unreachable: no answer in 0.3 s")
    assert ended.wait(10), "the connection stayed open"


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        ((401, {}), Code.UNAUTHENTICATED, "API server URL: token refused (401)"),
        ((403, {}), Code.PERMISSION_DENIED, "may not get the node: 403, see the README, Rights"),
        ((404, {"message": 'nodes "node-1" not found'}), Code.NOT_FOUND, 'get the node: 404, nodes "node-1" not found'),
        ((409, {"message": "modified"}), Code.ABORTED, "get the node: 409, modified"),
        (
            (429, {"message": "a budget\x1b[2J\n says\x00 no"}),
            Code.RESOURCE_EXHAUSTED,
            "get the node: 429, a budget [2J says no",
        ),
        ((500, {"message": "x" * 5000}), Code.INTERNAL, f"get the node: 500, {'x' * 300}"),
        ((500, b"<html>"), Code.INTERNAL, "get the node: 500, not the answer expected: JSON is malformed"),
        ((200, b""), Code.INTERNAL, "get the node: 200, not the answer expected: Input data was truncated"),
        ((200, []), Code.INTERNAL, "get the node: 200, not the answer expected: Expected `object`, got `array`"),
        (
            (200, {"spec": {"unschedulable": "yes"}}),
            Code.INTERNAL,
            "get the node: 200, not the answer expected: Expected `bool`",
        ),
        ((200, b"[" * 100_000), Code.INTERNAL, "get the node: 200, not the answer expected: "),
        ((200, b'{"x":' + b"[" * 100_000), Code.INTERNAL, "get the node: 200, not the answer expected: "),
        ((200, b" " * ((4 << 20) + 1)), Code.INTERNAL, "get the node: 200, too long"),
        ((307, {}), Code.INTERNAL, "get the node: 307, "),
    ],
)
def test_answers_that_are_none(
    authority: pki.Authority, remote: Https, answer: tuple[int, Any], code: Code, text: str
) -> None:
    remote.answer = lambda _request: answer
    found, message = failure(Server(config(authority, remote.url)))
    assert found is code
    assert message.replace(remote.url, "URL").startswith(text)
    remote.answer = lambda _request: (200, {})
    assert get(Server(config(authority, remote.url)))


def test_a_certificate_of_ours_that_is_refused(authority: pki.Authority, remote: Https, tmp_path: Path) -> None:
    remote.answer = lambda _request: (401, {})
    server = Server(config(authority, remote.url), certificate_file(authority, tmp_path, "node"))
    assert failure(server) == (Code.UNAUTHENTICATED, f"API server {remote.url}: client certificate refused (401)")


def _garbage(request: Request) -> None:
    request.handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)


def _headers(request: Request) -> None:
    request.handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n")


@pytest.mark.parametrize("answer", [_garbage, _headers])
def test_a_server_of_another_kind(authority: pki.Authority, remote: Https, answer: Callable[[Request], None]) -> None:
    remote.answer = answer
    code, message = failure(Server(config(authority, remote.url)))
    assert (code, "not an HTTP server's answer: " in message) == (Code.UNAVAILABLE, True)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ca": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}, "bootstrap kubeconfig: TLS: "),
        ({"ca": "nothing"}, "bootstrap kubeconfig: "),
        ({"server": "https://127.0.0.1:99999"}, "bootstrap kubeconfig: "),
        ({"certificate": "no", "key": "no", "token": None}, "bootstrap kubeconfig: TLS: "),
    ],
)
def test_a_configuration_that_cannot_be_used(authority: pki.Authority, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ApiError) as caught:
        Server(config(authority, "https://127.0.0.1:1", **fields))
    assert (caught.value.code, caught.value.message[: len(text)]) == (Code.FAILED_PRECONDITION, text)
