"""Puts images from OCI archives into containerd, so that CRI finds them without a registry and never collects them.

containerd's transfer service reads the archive by itself (docs/transfer.md and docs/streaming.md there). Nothing is
unpacked here: CRI unpacks an image when it makes the first container of it, and until then the CPU belongs to the
kubelet's start.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from h2.exceptions import H2Error

from initd.api.protocol import ApiError, Code
from initd.containers import messages
from initd.containers.client import CALL_SECONDS, Containerd, received
from initd.containers.messages import MESSAGES, Message

LABELS = {"io.cri-containerd.image": "managed", "io.cri-containerd.pinned": "pinned"}
IMPORT_LABEL = "io.initd.import"  # its value says by which import a name came
# containerd gives an image the full name of its annotation; a bare tag there needs a repository.
REFERENCE = {"name": "initd.local/image", "is_prefix": True, "allow_overwrite": True}
BYTES_PER_SECOND = 1 << 20  # that an import may count on
REACH_SECONDS = 60.0
KNOWN_SECONDS = 30.0


async def import_images(client: Containerd, paths: Sequence[str]) -> list[dict[str, str | float]]:
    """Import every image of the archives at `paths`; one that is there already is only made sure of. Returns `name`,
    `digest` and `milliseconds` of each, the time until CRI knew all of them.

    A bad archive does not keep the others out. Raises ApiError: INVALID_ARGUMENT for one that cannot be read or names
    no image, else as containerd gave it.
    """
    await client.reach(REACH_SECONDS)
    started = time.monotonic()
    stored: list[Message] = []
    errors: list[ApiError] = []
    for path in paths:
        try:
            stored += await _import(client, path)
        except ApiError as error:
            errors.append(ApiError(error.code, f"{path}: {error.message}"))
        except OSError as error:
            errors.append(ApiError(Code.INVALID_ARGUMENT, str(error)))
    await _known(client, {image.name for image in stored})
    if errors:
        raise ApiError(errors[0].code, "; ".join(error.message for error in errors))
    spent = round((time.monotonic() - started) * 1000, 1)
    return [{"name": image.name, "digest": image.target.digest, "milliseconds": spent} for image in stored]


async def _import(client: Containerd, path: str) -> list[Message]:
    """Import one archive; return the images as containerd then lists them."""
    name = uuid.uuid4().hex
    labels = [{"key": key, "value": value} for key, value in {**LABELS, IMPORT_LABEL: name}.items()]
    transfer = {
        "source": _any("containerd.types.transfer.ImageImportStream", stream=name),
        "destination": _any("containerd.types.transfer.ImageStore", labels=labels, extra_references=[REFERENCE]),
    }
    with open(path, "rb") as archive:  # noqa: ASYNC230 - the root is local, and this process has nothing else to do
        seconds = CALL_SECONDS + archive.seek(0, 2) / BYTES_PER_SECOND
        archive.seek(0)
        async with client.stream(messages.STREAM, seconds) as stream:
            await stream.send_message(_any("containerd.services.streaming.v1.StreamInit", id=name))
            await received(stream, messages.STREAM)
            sending = asyncio.ensure_future(_send(stream, archive))
            try:
                await client.call(messages.TRANSFER, transfer, seconds)
            finally:  # containerd leaves the rest alone after the archive's end or an error in it
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                with suppress(H2Error):  # it may have closed the stream already
                    await stream.cancel()
    reply = await client.call(messages.LIST_STORED, {"filters": [f'labels."{IMPORT_LABEL}"=={name}']})
    if not reply.images:
        raise ApiError(Code.INVALID_ARGUMENT, "no image with an annotation that names it")
    return list(reply.images)


async def _send(stream: Any, archive: IO[bytes]) -> None:
    """Send the archive, never more of it than containerd has room for."""
    window = 0
    while True:
        while window <= 0:
            window += MESSAGES["WindowUpdate"].FromString((await received(stream, messages.STREAM)).value).update
        if not (data := archive.read(window)):
            break
        await stream.send_message(_any("containerd.types.transfer.Data", data=data))
        window -= len(data)
    await stream.end()


def _any(kind: str, **fields: object) -> Message:
    """A message in a google.protobuf.Any, by its full name."""
    return MESSAGES["Any"](type_url=kind, value=MESSAGES[kind.rpartition(".")[2]](**fields).SerializeToString())


async def _known(client: Containerd, names: set[str]) -> None:
    """Wait until CRI has seen the images: it learns of them by events, and the kubelet's first look must find them."""
    try:
        async with asyncio.timeout(KNOWN_SECONDS):
            pause = 0.01
            while missing := names - await _pinned(client):
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.25)
    except TimeoutError:
        text = f"containerd: CRI does not know {min(missing)} {KNOWN_SECONDS:g} s after its import"
        raise ApiError(Code.DEADLINE_EXCEEDED, text) from None


async def _pinned(client: Containerd) -> set[str]:
    try:
        reply = await client.call(messages.LIST_IMAGES)
    except ApiError as error:
        if error.code is Code.UNAVAILABLE:  # CRI answers so while it recovers its state, after the socket is there
            return set()
        raise
    return {name for image in reply.images if image.pinned for name in image.repo_tags}
