"""Two API servers made for tests: one over TLS that answers what it is told to, and one without a wire that keeps
objects as the real one does.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from initd.api.protocol import ApiError, Code
from initd.cluster.objects import Object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from qemu.cluster.pki import Authority


class Https:
    """A server on loopback; `answer` gives status and body for a request, or does with its handler what it likes."""

    def __init__(self, authority: Authority, name: str = "server") -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], tuple[int, Any] | None] = lambda _request: (200, {})
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                request = Request(self)
                outer.requests.append(request)
                if (answer := outer.answer(request)) is not None:
                    status, body = answer
                    data = body if isinstance(body, bytes) else json.dumps(body).encode()
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST = do_PATCH = _serve  # noqa: N815 http.server's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.folder / f"{name}.crt", authority.folder / f"{name}.key")
        context.load_verify_locations(authority.certificate)
        context.verify_mode = ssl.CERT_OPTIONAL

        class Server(http.server.ThreadingHTTPServer):
            def finish_request(self, request: Any, address: Any) -> None:
                with contextlib.suppress(OSError), context.wrap_socket(request, server_side=True) as wrapped:
                    Handler(wrapped, address, self)

            def shutdown_request(self, request: Any) -> None:
                with contextlib.suppress(OSError):
                    request.close()

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class Request:
    """One request as it came in."""

    def __init__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.handler = handler
        self.method, self.path, self.headers = handler.command, handler.path, handler.headers
        length = int(handler.headers.get("Content-Length", 0))
        self.body = json.loads(handler.rfile.read(length)) if length else None
        certificate: Any = handler.connection.getpeercert()
        names = [
            dict(part)["commonName"] for part in (certificate or {}).get("subject", ()) if part[0][0] == "commonName"
        ]
        self.user: str | None = names[0] if names else None
        self.peer = handler.client_address


@contextlib.contextmanager
def https(authority: Authority, name: str = "server") -> Iterator[Https]:
    server = Https(authority, name)
    try:
        yield server
    finally:
        server.close()


def certificate_file(authority: Authority, folder: Path, name: str) -> str:
    """Certificate and key in one file, as the kubelet writes its own."""
    path = folder / f"{name}.pem"
    path.write_bytes((authority.folder / f"{name}.crt").read_bytes() + (authority.folder / f"{name}.key").read_bytes())
    return str(path)


class Store:
    """Kubernetes's objects by path, with versions, merge patches and evictions; has the interface of `Server`.

    `fail` is called with method and path before each request, and raises what is to go wrong.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.did: list[tuple[str, str, Any]] = []
        self.actors: set[str | None] = set()
        self.fail: Callable[[str, str], object] = lambda _method, _path: None
        self._version = 0
        self.node, self.boot_id = "node-1", "boot-2"

    def put(self, path: str, **fields: Any) -> dict[str, Any]:
        """Make an object."""
        self._version += 1
        made = {"metadata": {}, "spec": {}, "status": {}, **fields}
        made["metadata"] = {
            "name": path.rsplit("/", 1)[1], "uid": path, **made["metadata"], "resourceVersion": str(self._version)
        }  # fmt: skip
        self.objects[path] = made
        return made

    def pod(self, name: str, **fields: Any) -> dict[str, Any]:
        metadata = {"namespace": "default", **fields.pop("metadata", {})}
        return self.put(f"/api/v1/namespaces/default/pods/{name}", metadata=metadata, **fields)

    async def request(
        self, what: str, method: str, path: str, body: Any = None, *, kind: str = "", acting_as: str | None = None
    ) -> Object:
        self.fail(method, path)
        self.actors.add(acting_as)
        if method != "GET":
            self.did.append((method, path, body))
        match method:
            case "POST" if path.endswith("/eviction"):
                self._found(what, path.removesuffix("/eviction"))["metadata"]["deletionTimestamp"] = "now"
                return Object()
            case "POST":
                made = f"{path}/{body['metadata']['name']}"
                if made in self.objects:
                    raise ApiError(Code.ABORTED, f"{what}: 409, already exists")
                self.put(made, **body)
                return Object()
            case "PATCH":
                if kind.startswith("application/merge"):
                    self._patch(what, path, body)
                return Object()
        return msgspec.convert(self._found(what, path), Object)

    async def pages(self, _what: str, path: str, _page: int = 50) -> AsyncIterator[Object]:
        self.fail("GET", path)
        kind = urlsplit(path).path.rsplit("/", 1)[1]
        assert parse_qs(urlsplit(path).query)["fieldSelector"]
        for found in [item for where, item in self.objects.items() if f"/{kind}/" in where]:
            yield msgspec.convert(found, Object, strict=False)

    def _found(self, what: str, path: str) -> dict[str, Any]:
        if path not in self.objects:
            raise ApiError(Code.NOT_FOUND, f"{what}: 404, not found")
        return self.objects[path]

    def _patch(self, what: str, path: str, body: dict[str, Any]) -> None:
        old = self._found(what, path)
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted not in {None, old["metadata"]["resourceVersion"]}:
            raise ApiError(Code.ABORTED, f"{what}: 409, the object has been modified")
        self.put(path, **merged(old, body))


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found
