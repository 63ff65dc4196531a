"""Liveness: asking a service whether it still works, from outside of it.

All services are asked in one coalesced tick, so that an idle node wakes up rarely.
"""

import asyncio
import errno

TICK = 30.0
TIMEOUT = 5.0
PATIENCE = 30.0  # how long a service may give bad answers before it is ended; one that starts takes some seconds of it
# What a probe fails with for want of something that PID 1 or the machine has too little of: no fault of the service.
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}

# HTTP/2's connection preface and an empty SETTINGS frame (RFC 9113, 3.4); a gRPC server answers with its own SETTINGS.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS = 4


async def http(host: str, port: int, path: str, timeout: float = TIMEOUT) -> str | None:
    """GET the path; None if the answer is 200, else what is wrong in words. `timeout` is in seconds.

    Raises OSError if it could not even ask (see `OURS`).
    """
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                status = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer from http://{host}:{port}{path} in {timeout:g} s"
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in OURS:
            raise
        return f"http://{host}:{port}{path}: {error}"
    words = status.split()
    return (
        None if words[1:2] == [b"200"] else f"http://{host}:{port}{path}: {status.decode(errors='replace').strip()!r}"
    )


async def http2_socket(path: str, timeout: float = TIMEOUT) -> str | None:
    """Open HTTP/2 on a Unix socket; None if the server answers with its SETTINGS, else as `http`."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(_HTTP2_HELLO)
                header = await reader.readexactly(9)
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer from {path} in {timeout:g} s"
    except (OSError, asyncio.IncompleteReadError) as error:
        if getattr(error, "errno", None) in OURS:
            raise
        return f"{path}: {error}"
    return None if header[3] == _SETTINGS else f"{path}: not an HTTP/2 server"
