"""The API server's way to the kubelets: an HTTP CONNECT proxy on a Unix socket (KEP-1281, HTTPConnect over UDS).

A node's address is one of a network inside QEMU that the host is not on; what the host can reach is the port that QEMU
forwards. `dial` knows which it is.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HEAD = 8192  # bytes of a request's head
_CHUNK = 64 << 10


class Proxy:
    """Serves the socket at `path` from start() to close(); `dial(host, port)` connects or raises OSError."""

    def __init__(self, path: Path, dial: Callable[[str, int], socket.socket]) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _serve(self.request, dial)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        path.unlink(missing_ok=True)
        self._server = Server(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, name="egress", daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that are open end with their peers."""
        self._server.shutdown()
        self._server.server_close()


def _serve(client: socket.socket, dial: Callable[[str, int], socket.socket]) -> None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = client.recv(1)  # what follows the head is the tunnel's
        if not data or len(head) > _HEAD:
            return
        head += data
    _, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    host, _, port = target.rpartition(":")
    try:
        node = dial(host.strip("[]"), int(port))
    except (OSError, ValueError) as error:
        text = f"{target}: {error}".encode()
        client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
        return
    with node:
        node.settimeout(None)  # the one for connecting; a tunnel may be quiet for long
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        splice(client, node)


def splice(client: socket.socket, server: socket.socket) -> None:
    """Hand on what each says to the other; returns when both have ended."""
    back = threading.Thread(target=_copy, args=(server, client), daemon=True)
    back.start()
    _copy(client, server)
    back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until the end, and pass the end on."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
