"""The containers worker: what PID 1 asks of containerd, over gRPC, in a process that ends when nobody asks."""

from contextlib import closing
from functools import partial

from initd.containers import cri
from initd.containers.client import Containerd
from initd.containers.images import import_images
from initd.worker import Link


async def serve(link: Link) -> None:
    """Answer `import_images [paths]`, `pods []`, `images []` and `stop [seconds]` until PID 1 closes its end."""
    with closing(Containerd()) as client:
        link.handle("import_images", partial(import_images, client))
        link.handle("pods", partial(cri.pods, client))
        link.handle("images", partial(cri.images, client))
        link.handle("stop", partial(cri.stop, client))
        await link.serve()
