"""The containers worker: what PID 1 asks of containerd, over gRPC, in a process that ends when nobody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from initd.api.protocol import ApiError, Code
from initd.containers import cri
from initd.containers.client import Containerd
from initd.containers.images import ImportedImage, import_images

if TYPE_CHECKING:
    from initd.api.types import ImageInfo, PodInfo
    from initd.worker import Link


async def serve(link: Link) -> None:
    """Answer `import_images [paths]`, `pods []` and `images []` until PID 1 closes its end."""
    client = Containerd()

    async def importing(paths: object) -> list[ImportedImage]:
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ApiError(Code.INVALID_ARGUMENT, f"import_images: paths: {paths!r}, expected a list of texts")
        return await import_images(client, paths)

    async def pods() -> list[PodInfo]:
        return await cri.pods(client)

    async def images() -> list[ImageInfo]:
        return await cri.images(client)

    link.handle("import_images", importing)
    link.handle("pods", pods)
    link.handle("images", images)
    try:
        await link.serve()
    finally:
        client.close()
