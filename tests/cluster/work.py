"""What the tests of work give the cluster to do: objects in one namespace, and what is asked of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qemu.cluster.api import StatusError
from qemu.cluster.pods import image
from qemu.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qemu.cluster import Cluster

NAMESPACE = "work"
ECHO = 7777  # a client pod's port
SECONDS = 150.0
_COLLECTIONS = {
    "deployments": "/apis/apps/v1",
    "daemonsets": "/apis/apps/v1",
    "jobs": "/apis/batch/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
}


def container(name: str, image_name: str, *args: str, **fields: Any) -> dict[str, Any]:
    """Return a container that runs an image of the harness' registry."""
    return {"name": name, "image": image(image_name), "args": list(args), **fields}


def shell(name: str, script: str, **fields: Any) -> dict[str, Any]:
    """Return a container that runs a script of busybox' shell."""
    return container(name, "busybox", command=["/bin/sh", "-c", script], **fields)


def mount(name: str, path: str, **fields: Any) -> dict[str, Any]:
    """Return a mount of the volume `name`."""
    return {"name": name, "mountPath": path, **fields}


def spec(*containers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a pod's spec; it ends in a second, since a shell that is a container's PID 1 heeds no SIGTERM."""
    return {"containers": list(containers), "terminationGracePeriodSeconds": 1, **fields}


def pod(name: str, *containers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a pod that is not started again."""
    body = spec(*containers, **{"restartPolicy": "Never", **fields})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": body}


def controller(kind: str, name: str, template: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a Deployment or DaemonSet of pods with that spec."""
    labels = {"app": name}
    body = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": template}}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": {**body, **fields}}


class Work:
    """The objects of one test; `clean` has them deleted."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.api = cluster.control_plane.api
        self._made: list[dict[str, Any]] = []

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects in the namespace."""
        items = [{**item, "metadata": {**item["metadata"], "namespace": NAMESPACE}} for item in objects]
        self._made += items
        self.cluster.apply(*items)

    def clean(self) -> None:
        """Delete what was applied; what it was made of goes in the background."""
        if self._made:
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": self._made})
            self.cluster.kubectl("delete", "--wait=false", "--ignore-not-found", "-f", "-", text=text)

    def get(self, collection: str, name: str) -> Any:
        """Return an object of the namespace, or a list of them: the name is then ?labelSelector=..."""
        group = _COLLECTIONS.get(collection, "/api/v1")
        separator = "" if name.startswith("?") else "/"
        return self.api.get(f"{group}/namespaces/{NAMESPACE}/{collection}{separator}{name}")

    def pods(self, app: str) -> list[dict[str, Any]]:
        """Return the pods with that label."""
        found: list[dict[str, Any]] = self.get("pods", f"?labelSelector=app={app}")["items"]
        return found

    def until(
        self, collection: str, name: str, what: str, check: Callable[[Any], Any], seconds: float = SECONDS
    ) -> Any:
        """Return the object once check(it) is true; raises HarnessError with its status if that takes too long."""
        last: Any = None

        def ask() -> Any:
            nonlocal last
            last = self.get(collection, name)
            return last if check(last) else None

        try:
            return self.cluster.control_plane.wait(f"{collection} {name} {what}", ask, seconds)
        except HarnessError as error:
            status = json.dumps((last or {}).get("status"), indent=1)
            raise HarnessError(error.message, detail=f"{status}\n{self._events(name)}") from None

    def running(self, name: str) -> Any:
        """Return the pod once all its containers are ready."""
        return self.until("pods", name, "ready", ready)

    def ended(self, name: str, phase: str = "Succeeded") -> Any:
        """Return the pod once it is over, which must have gone well unless another phase is expected."""
        found = self.until("pods", name, "over", lambda pod: pod["status"].get("phase") in {"Succeeded", "Failed"})
        assert found["status"]["phase"] == phase, f"{found['status']}\n{self.logs(name)}"
        return found

    def logs(self, name: str, *arguments: str) -> str:
        """Return what a pod wrote."""
        try:
            return self.kubectl("logs", name, "--all-containers", *arguments)
        except HarnessError as error:
            return str(error)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Return what kubectl prints about the namespace."""
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *arguments, text=text)

    def run(self, name: str, script: str) -> str:
        """Return what a script prints in a running pod that has a shell; raises HarnessError with its error."""
        return self.kubectl("exec", name, "--", "/bin/sh", "-c", script).strip()

    def evicted(self, name: str, reason: str) -> Any:
        """Return the pod once the kubelet has evicted it, with a message that says why."""
        found = self.until("pods", name, "evicted", lambda pod: pod["status"].get("reason") == "Evicted")
        assert reason in found["status"]["message"]
        return found

    def _events(self, name: str) -> str:
        try:
            return self.kubectl("get", "events", f"--field-selector=involvedObject.name={name}")
        except (HarnessError, StatusError) as error:
            return str(error)


def ready(found: Any) -> bool:
    """Whether a pod is Ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", ()))


def state(found: Any, name: str, last: str = "state") -> dict[str, Any]:
    """The state of a pod's container, or its lastState: {"terminated": {...}}."""
    statuses = [*found["status"].get("containerStatuses", ()), *found["status"].get("initContainerStatuses", ())]
    result: dict[str, Any] = next((status[last] for status in statuses if status["name"] == name), {})
    return result
