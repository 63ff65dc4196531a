"""A client of the API server for the harness and its tests: JSON over one TLS connection a request."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_JSON, _MERGE = "application/json", "application/merge-patch+json"
_TABLE = f"{_JSON};as=Table;v=v1;g=meta.k8s.io"


class StatusError(Exception):
    """The API server refused a request; `code` is the HTTP status."""

    def __init__(self, method: str, path: str, code: int, body: bytes) -> None:
        try:
            message = str(json.loads(body).get("message"))
        except (ValueError, AttributeError):
            message = body.decode(errors="replace")
        super().__init__(f"{method} {path}: {code} {message}")
        self.code = code


class Api:
    """The API server at 127.0.0.1:port, as the user whose certificate and key these are."""

    def __init__(self, port: int, ca: Path, certificate: Path, key: Path) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=ca)
        self._context.load_cert_chain(certificate, key)

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=timeout, context=self._context)

    def _send(
        self, connection: http.client.HTTPSConnection, method: str, path: str, body: object, accept: str
    ) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        kind = _MERGE if method == "PATCH" else _JSON
        connection.request(method, path, data, {"Content-Type": kind, "Accept": accept})
        answer = connection.getresponse()
        if answer.status >= 300:
            raise StatusError(method, path, answer.status, answer.read())
        return answer

    def raw(self, method: str, path: str, body: object = None, *, timeout: float = 30.0, accept: str = _JSON) -> bytes:
        """Return the answer's body. Raises StatusError, or OSError if the server is not there."""
        connection = self._connect(timeout)
        try:
            return self._send(connection, method, path, body, accept).read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Any:
        """Return the object or list at `path`; raises as `raw`."""
        return json.loads(self.raw("GET", path, **options))

    def table(self, path: str) -> Any:
        """Return the list at `path` as the Table that kubectl shows, its rows with their objects; raises as `raw`."""
        return self.get(f"{path}?includeObject=Object", accept=_TABLE)

    def create(self, path: str, body: object) -> Any:
        """Create `body` in the collection at `path`; raises as `raw`."""
        return json.loads(self.raw("POST", path, body))

    def patch(self, path: str, body: object) -> Any:
        """Merge `body` into the object at `path` (RFC 7386); raises as `raw`."""
        return json.loads(self.raw("PATCH", path, body))

    def replace(self, path: str, body: object) -> Any:
        """Put `body` at `path`; raises as `raw`."""
        return json.loads(self.raw("PUT", path, body))

    def delete(self, path: str, **options: object) -> None:
        """Delete the object at `path`, with DeleteOptions; raises as `raw`."""
        self.raw("DELETE", path, options or None)

    def watch(self, path: str, timeout: float) -> Iterator[Any]:
        """Yield the events of a watch at `path`: first one for each object that is there, then changes.

        Ends after `timeout` seconds without one, or when the server goes; raises StatusError.
        """
        connection = self._connect(timeout)
        try:
            answer = self._send(connection, "GET", f"{path}?watch=1", None, _JSON)
            while line := answer.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()
