"""Pods, containers and images as the Kubernetes Container Runtime Interface (runtime.v1) lists them."""

import asyncio
from collections.abc import Callable, Iterable

from structlog import get_logger

from initd.api.protocol import ApiError, Code
from initd.api.types import ContainerInfo, ImageInfo, PodInfo
from initd.containers import messages
from initd.containers.client import Containerd
from initd.containers.messages import Message, Rpc

REACH_SECONDS = 5.0
STOP_SECONDS = 5.0  # for what comes after a container's SIGKILL
GRACE_SECONDS = 30.0  # Kubernetes's default
POD_STATES = ("ready", "notready")
CONTAINER_STATES = ("created", "running", "exited", "unknown")
NANOSECONDS = 1e9
log = get_logger()


async def images(client: Containerd) -> list[ImageInfo]:
    """All images, by name. Raises ApiError."""
    await client.reach(REACH_SECONDS)
    reply = await client.call(messages.LIST_IMAGES)
    found: list[ImageInfo] = [
        {
            "id": image.id,
            "names": list(image.repo_tags) or list(image.repo_digests),
            "size_bytes": image.size,
            "pinned": image.pinned,
        }
        for image in reply.images
    ]
    return sorted(found, key=lambda info: (info["names"], info["id"]))


async def pods(client: Containerd) -> list[PodInfo]:
    """All pods with their containers, by namespace and name. Raises ApiError.

    CRI keeps what a pod's restarts left behind until the kubelet removes it: of each pod the newest sandbox counts,
    and in it of each container the newest run.
    """
    await client.reach(REACH_SECONDS)
    sandboxes, containers = await asyncio.gather(client.call(messages.LIST_PODS), client.call(messages.LIST_CONTAINERS))
    newest = _newest(sandboxes.items, lambda pod: (pod.metadata.namespace, pod.metadata.name, pod.metadata.uid))
    found = await asyncio.gather(*(_pod(client, pod, containers.containers) for pod in newest))
    return [pod for pod in found if pod is not None]


async def stop(client: Containerd, seconds: float) -> int:
    """Have every running container stopped, side by side: its stop signal, then SIGKILL when its pod's grace period or
    `seconds` are over. Returns how many there were; one that cannot be stopped is no reason to wait for no other.
    """
    reply = await client.call(messages.LIST_CONTAINERS)
    running = [container for container in reply.containers if _state(CONTAINER_STATES, container.state) == "running"]
    stops = (
        client.call(
            messages.STOP_CONTAINER,
            {"container_id": container.id, "timeout": int(min(_grace(container), seconds))},
            seconds=seconds + STOP_SECONDS,
        )
        for container in running
    )
    for container, outcome in zip(running, await asyncio.gather(*stops, return_exceptions=True), strict=True):
        if isinstance(outcome, BaseException):
            log.warning("container not stopped", container=container.metadata.name, error=str(outcome))
    return len(running)


def _grace(container: Message) -> float:
    """The pod's terminationGracePeriodSeconds, which the kubelet writes there."""
    annotations = {entry.key: entry.value for entry in container.annotations}
    text = annotations.get("io.kubernetes.pod.terminationGracePeriod", "")
    return float(text) if text.isdecimal() else GRACE_SECONDS


def _newest(items: Iterable[Message], key: Callable[[Message], tuple[str, ...]]) -> list[Message]:
    """The item created last for each key, in the order of the keys."""
    newest = {key(item): item for item in sorted(items, key=lambda item: int(item.created_at))}
    return [newest[name] for name in sorted(newest)]


async def _pod(client: Containerd, pod: Message, containers: Iterable[Message]) -> PodInfo | None:
    runs = _newest((c for c in containers if c.pod_sandbox_id == pod.id), lambda container: (container.metadata.name,))
    status, *states = await asyncio.gather(
        _status(client, messages.POD_STATUS, {"pod_sandbox_id": pod.id}),
        *(_status(client, messages.CONTAINER_STATUS, {"container_id": run.id}) for run in runs),
    )
    if status is None:
        return None
    pairs = zip(runs, states, strict=True)
    return {
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
        "id": pod.id,
        "state": _state(POD_STATES, pod.state),
        "address": status.network.ip or None,
        "created": pod.created_at / NANOSECONDS,
        "containers": [_container(run, state) for run, state in pairs if state is not None],
    }


async def _status(client: Containerd, rpc: Rpc, fields: dict[str, str]) -> Message | None:
    """The status of a pod or container; None if it was removed since it was listed."""
    try:
        return (await client.call(rpc, fields)).status
    except ApiError as error:
        if error.code is Code.NOT_FOUND:
            return None
        raise


def _container(run: Message, status: Message) -> ContainerInfo:
    state = _state(CONTAINER_STATES, status.state)
    return {
        "name": run.metadata.name,
        "id": run.id,
        # The kubelet asks for containers by image id; the name that a person wrote is kept beside it.
        "image": run.image.user_specified_image or status.image.image or run.image.image,
        "state": state,
        "restarts": run.metadata.attempt,
        "created": status.created_at / NANOSECONDS,
        "started": status.started_at / NANOSECONDS if status.started_at else None,
        "exit_code": status.exit_code if state == "exited" else None,
        "reason": status.reason,
    }


def _state(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"unknown ({number})"
