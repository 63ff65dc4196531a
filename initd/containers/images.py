"""Puts images from OCI archives into containerd, so that CRI finds them without a registry and never collects them.

Blobs go in through the content service, children before parents, then the image's name. Nothing is unpacked here: CRI
unpacks an image when it makes the first container of it, and until then the CPU belongs to the kubelet's start.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypedDict

from structlog import get_logger

from initd.api.protocol import ApiError, Code
from initd.containers import messages
from initd.containers.archive import GC_LABEL, Archive, ArchiveError, Blob, Image, opened
from initd.containers.client import CALL_SECONDS, received
from initd.containers.messages import MESSAGES, WriteAction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from initd.containers.client import Containerd

NAMESPACE = "k8s.io"
LABELS = {"io.cri-containerd.image": "managed", "io.cri-containerd.pinned": "pinned"}
CHUNK = 1 << 20  # containerd accepts messages up to 16 MiB
ATTEMPTS = 3
REACH_SECONDS = 60.0
KNOWN_SECONDS = 30.0
LEASE_HOURS = 1
log = get_logger()


class ImportedImage(TypedDict):
    """One image as imported; `milliseconds` is the time until CRI knew it."""

    name: str
    digest: str
    milliseconds: float


async def import_images(client: Containerd, paths: Sequence[str]) -> list[ImportedImage]:
    """Import every image of the archives at `paths`; one that is there already is only made sure of.

    The archives are read while containerd still starts. A bad one does not keep the others out: its error,
    INVALID_ARGUMENT, comes after them. Other failures raise ApiError as containerd gave them.
    """
    bad: list[str] = []
    with ExitStack() as stack:
        work = [item for path in paths for item in _read(path, stack, bad)]
        results = await _import_all(client, work)
    if bad:
        raise ApiError(Code.INVALID_ARGUMENT, "; ".join(bad))
    return results


async def _import_all(client: Containerd, work: Sequence[tuple[Archive, Image]]) -> list[ImportedImage]:
    """Import everything; start again if containerd ends meanwhile, since what it has by then costs next to nothing."""
    for _ in range(ATTEMPTS - 1):
        await client.reach(REACH_SECONDS)
        try:
            return await _import_once(client, work)
        except ApiError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            log.warning("import interrupted", error=error.message)
    await client.reach(REACH_SECONDS)
    return await _import_once(client, work)


async def _import_once(client: Containerd, work: Sequence[tuple[Archive, Image]]) -> list[ImportedImage]:
    started = time.monotonic()
    async with _lease(client) as metadata:
        for archive, image in work:
            await _store(client, archive, image, metadata)
    results: list[ImportedImage] = []
    for _, image in work:
        await _known(client, image)
        milliseconds = round((time.monotonic() - started) * 1000, 1)
        results.append({"name": image.name, "digest": image.target.digest, "milliseconds": milliseconds})
    return results


def _read(path: str, stack: ExitStack, bad: list[str]) -> list[tuple[Archive, Image]]:
    try:
        archive = stack.enter_context(opened(path))
        return [(archive, image) for image in archive.images()]
    except (ArchiveError, OSError) as error:
        bad.append(str(error))
        return []


@asynccontextmanager
async def _lease(client: Containerd) -> AsyncIterator[Mapping[str, str]]:
    """Hold a lease: without one, a garbage collection between the blobs and the name would take the blobs away.

    It expires by itself, so that a worker that is killed here leaves nothing behind for ever.
    """
    namespace = {"containerd-namespace": NAMESPACE}
    name = f"initd-import-{uuid.uuid4().hex}"
    expiry = datetime.now(UTC) + timedelta(hours=LEASE_HOURS)
    await client.call(
        messages.CREATE_LEASE,
        {"id": name, "labels": {"containerd.io/gc.expire": expiry.isoformat(timespec="seconds")}},
        namespace,
    )
    try:
        yield {**namespace, "containerd-lease": name}
    finally:
        try:
            await client.call(messages.DELETE_LEASE, {"id": name}, namespace)
        except ApiError as error:  # it expires; and what ended the import must not be hidden by this
            log.warning("lease not deleted", lease=name, error=error.message)


async def _store(client: Containerd, archive: Archive, image: Image, metadata: Mapping[str, str]) -> None:
    for blob in image.blobs:
        try:
            await _write(client, archive, blob, metadata)
        except ApiError as error:
            if error.code is not Code.ALREADY_EXISTS:
                raise
    target = image.target
    stored = {
        "name": image.name,
        "labels": LABELS,
        "target": {"media_type": target.media_type, "digest": target.digest, "size": target.size},
    }
    try:
        await client.call(messages.CREATE_IMAGE, {"image": stored}, metadata)
    except ApiError as error:
        if error.code is not Code.ALREADY_EXISTS:
            raise
        mask = {"paths": ["target", "labels"]}
        await client.call(messages.UPDATE_IMAGE, {"image": stored, "update_mask": mask}, metadata)


async def _write(client: Containerd, archive: Archive, blob: Blob, metadata: Mapping[str, str]) -> None:
    """Send one blob; containerd checks its digest. Raises ALREADY_EXISTS at the first message if it is there."""
    size, digest = blob.target.size, blob.target.digest
    seconds = CALL_SECONDS + size / CHUNK
    async with client.stream(messages.WRITE, metadata, seconds) as stream:
        with archive.blob(digest) as content:
            for offset in range(0, size or 1, CHUNK):
                last = offset + CHUNK >= size
                request = MESSAGES[messages.WRITE.request](
                    action=WriteAction.COMMIT if last else WriteAction.WRITE,
                    ref=f"{metadata['containerd-lease']}-{digest}",
                    total=size,
                    expected=digest,
                    offset=offset,
                    data=content.read(CHUNK),
                    labels=blob.labels if last else {},
                )
                await stream.send_message(request, end=last)
                await received(stream, messages.WRITE)


async def _known(client: Containerd, image: Image) -> None:
    """Wait until CRI has seen the image: it learns of it by an event, and the kubelet's first look must find it."""
    ids = {blob.labels[f"{GC_LABEL}.config"] for blob in image.blobs if f"{GC_LABEL}.config" in blob.labels}
    try:
        async with asyncio.timeout(KNOWN_SECONDS):
            pause = 0.01
            while not await _is_known(client, image.name, ids):
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.25)
    except TimeoutError:
        text = f"containerd: CRI does not know {image.name} {KNOWN_SECONDS:g} s after its import"
        raise ApiError(Code.DEADLINE_EXCEEDED, text) from None


async def _is_known(client: Containerd, name: str, ids: set[str]) -> bool:
    try:
        reply = await client.call(messages.IMAGE_STATUS, {"image": {"image": name}})
    except ApiError as error:
        if error.code is Code.UNAVAILABLE:  # CRI answers so while it recovers its state, after the socket is there
            return False
        raise
    return reply.image.id in ids and reply.image.pinned
