"""Requests to the API server: JSON over HTTPS. Each has a deadline, and each failure is one ApiError with words that a
person can act on.

http.client blocks, so it works in a thread. Nothing that the server says is trusted: an answer is bounded, and becomes
what its type has room for.
"""

import asyncio
import http.client
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import closing, suppress
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from initd.api.protocol import ApiError, Code
from initd.cluster.objects import Object

SECONDS = 10.0
ANSWER_BYTES = 4 << 20
TEXT = 300  # characters that are kept of what the server says
PAGES = 200
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
_CODES = {404: Code.NOT_FOUND, 409: Code.ABORTED, 429: Code.RESOURCE_EXHAUSTED}
_WRONG_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED (openssl/x509_vfy.h)


class Server:
    """An API server as one user of the node's sees it: of a file with certificate and key, or else of the bootstrap
    kubeconfig that config holds (joining.read). Raises ApiError FAILED_PRECONDITION for what is no certificate.
    """

    def __init__(self, config: Mapping[str, Any], certificate: str | None = None) -> None:
        self.url, self.node, self.boot_id = config["server"], config["name"], config["boot_id"]
        self._token: str | None = None if certificate else config.get("token")
        self._user = "token" if self._token else "client certificate"
        # Not create_default_context(): Python 3.13's refuses CAs without key identifiers, as clusters have them.
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate CA may be all that is trusted
        try:
            where = urlsplit(self.url)
            self._host, self._port, self._base = where.hostname or "", where.port or 443, where.path.rstrip("/")
            self._tls.load_verify_locations(cadata=config["ca"])
            if certificate:
                self._tls.load_cert_chain(certificate)
            elif config.get("certificate"):
                self._load(config["certificate"], config["key"])
        except (OSError, ValueError) as error:
            what = certificate or "bootstrap kubeconfig"
            raise ApiError(Code.FAILED_PRECONDITION, f"{what}: {_words(error)}") from None

    def _load(self, certificate: str, key: str) -> None:
        descriptor = os.memfd_create("certificate")  # OpenSSL reads files only
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{certificate}\n{key}\n")
            file.flush()
            self._tls.load_cert_chain(f"/proc/self/fd/{descriptor}")

    async def request(
        self,
        what: str,
        method: str,
        path: str,
        body: object = None,
        *,
        kind: str = "application/json",
        acting_as: str | None = None,
    ) -> Object:
        """Ask for one thing; `what` says it in words ("get the node"), kind is the body's type. Returns what a GET got.

        Raises ApiError.
        """
        headers = {"Accept": "application/json", "User-Agent": "initd", "Connection": "close"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if acting_as:
            headers["Impersonate-User"] = acting_as
        data = None
        if body is not None:
            headers["Content-Type"], data = kind, msgspec.json.encode(body)
        status, answer = await self._ask(method, self._base + path, data, headers)
        try:
            if 200 <= status < 300 and len(answer) <= ANSWER_BYTES:
                # To an eviction a Status is the answer, which is no object of this shape.
                return msgspec.json.decode(answer, type=Object) if method == "GET" else Object()
            said = "too long" if len(answer) > ANSWER_BYTES else msgspec.json.decode(answer, type=dict).get("message")
        except (msgspec.MsgspecError, RecursionError) as error:
            said = f"not the answer expected: {error}"
        if status == http.HTTPStatus.UNAUTHORIZED:
            raise self._error(Code.UNAUTHENTICATED, f"{self._user} refused (401)")
        if status == http.HTTPStatus.FORBIDDEN:
            text = f"may not {what}: 403, see the README, Rights: {line(str(said))}"
            raise ApiError(Code.PERMISSION_DENIED, text)
        raise ApiError(_CODES.get(status, Code.INTERNAL), f"{what}: {status}, {line(str(said))}")

    async def pages(self, what: str, path: str, page: int = 50) -> AsyncIterator[Object]:
        """Each item of a list, asked for in parts of so many. Raises ApiError."""
        rest = ""
        for _ in range(PAGES):
            part = await self.request(what, "GET", f"{path}&limit={page}&continue={quote(rest, '')}")
            for found in part.items:
                yield found
            rest = part.metadata.rest
            if not rest:
                return
        raise ApiError(Code.INTERNAL, f"{what}: more than {PAGES} pages")

    async def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS, context=self._tls)
        wire: socket.socket | None = None
        given_up = False

        def exchange() -> tuple[int, bytes]:
            nonlocal wire
            with closing(connection):
                connection.connect()
                wire = connection.sock
                if given_up:  # while a name was looked up, which nothing ends
                    raise TimeoutError
                connection.request(method, path, body, headers)
                with connection.getresponse() as answer:
                    return answer.status, answer.read(ANSWER_BYTES + 1)

        try:
            async with asyncio.timeout(SECONDS):
                return await asyncio.to_thread(exchange)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._error(Code.UNAVAILABLE, _words(error)) from None
        finally:
            given_up = True
            if wire is not None:
                with suppress(OSError):
                    wire.shutdown(socket.SHUT_RDWR)  # so that the thread ends, too

    def _error(self, code: Code, text: str) -> ApiError:
        return ApiError(code, f"API server {self.url}: {text}")


def _words(error: Exception) -> str:
    match error:
        case ssl.SSLCertVerificationError(verify_code=code, verify_message=message):
            now = time.strftime("; the time here is %Y-%m-%d, %H h UTC", time.gmtime())  # no news each second
            return f"certificate verify failed: {message}{now if code in _WRONG_TIME else ''}"
        case ssl.SSLError(reason=reason):
            return f"TLS: {reason or error}"
        case TimeoutError():
            return f"unreachable: no answer in {SECONDS:g} s"
        case OSError(strerror=reason):
            return f"unreachable: {reason or error}"
    return f"not an HTTP server's answer: {line(repr(error))}"


def line(text: str) -> str:
    """Text of a stranger in one line, and not without end."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:TEXT]
