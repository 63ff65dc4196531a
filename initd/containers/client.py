"""gRPC to containerd's Unix socket: every call has a deadline and every failure is one ApiError that says where."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from google.protobuf.message import DecodeError
from grpclib.client import Channel, Stream
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from initd.api.protocol import ApiError, Code
from initd.containers.messages import MESSAGES, Message, Rpc

SOCKET = "/run/containerd/containerd.sock"
NAMESPACE = {"containerd-namespace": "k8s.io"}  # where CRI keeps what is its
CALL_SECONDS = 30.0
RETRY_SECONDS = 0.05


class Containerd:
    """One connection, made at the first call and again after containerd came back from a restart."""

    def __init__(self, path: str = SOCKET) -> None:
        self.path = path
        self._channel: Channel | None = None

    async def reach(self, seconds: float) -> None:
        """Wait until something accepts connections on the socket; raises UNAVAILABLE after `seconds`.

        That the socket is there says nothing, a containerd that died leaves its own behind.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(self.path)
            except OSError as error:
                if time.monotonic() >= end:
                    text = f"containerd: not reachable at {self.path} within {seconds:g} s: {error.strerror}"
                    raise ApiError(Code.UNAVAILABLE, text) from None
            else:
                writer.close()
                return
            await asyncio.sleep(RETRY_SECONDS)  # nothing announces that a socket has begun to listen

    async def call(
        self, rpc: Rpc, fields: Mapping[str, object] | None = None, seconds: float = CALL_SECONDS
    ) -> Message:
        """One unary call; `fields` fill the request. Raises ApiError with the code that the server gave."""
        async with self.stream(rpc, seconds, Cardinality.UNARY_UNARY) as stream:
            await stream.send_message(MESSAGES[rpc.request](**(fields or {})), end=True)
            return await received(stream, rpc)

    @asynccontextmanager
    async def stream(
        self, rpc: Rpc, seconds: float, cardinality: Cardinality = Cardinality.STREAM_STREAM
    ) -> AsyncIterator[Stream[Message, Message]]:
        """A call to send and receive messages on, all of it within `seconds`; raises ApiError as `call` does."""
        self._channel = self._channel or Channel(path=self.path)
        request = self._channel.request(
            rpc.path, cardinality, MESSAGES[rpc.request], MESSAGES[rpc.reply], metadata=NAMESPACE
        )
        what = f"containerd: {rpc.path.lstrip('/')}"
        try:
            # grpclib's own timeout does not cover a server that accepts and never answers the connection preface.
            async with asyncio.timeout(seconds), request as stream:
                yield stream
        except GRPCError as error:
            raise ApiError(Code[error.status.name], f"{what}: {error.message}") from error
        except TimeoutError as error:
            raise ApiError(Code.DEADLINE_EXCEEDED, f"{what}: no answer within {seconds:g} s") from error
        except (OSError, StreamTerminatedError, ProtocolError) as error:
            raise ApiError(Code.UNAVAILABLE, f"{what}: {self.path}: {error}") from error
        except DecodeError as error:
            raise ApiError(Code.INTERNAL, f"{what}: the answer is not the message expected: {error}") from error

    def close(self) -> None:
        """Drop the connection, if there is one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


async def received(stream: Stream[Message, Message], rpc: Rpc) -> Message:
    """The next message of a call; raises ApiError if the server ended the call without one and without an error."""
    reply = await stream.recv_message()
    if reply is None:
        await stream.recv_trailing_metadata()  # raises what the server ended the call with, unless that was OK
        raise ApiError(Code.INTERNAL, f"containerd: {rpc.path.lstrip('/')}: ended without an answer")
    return reply
