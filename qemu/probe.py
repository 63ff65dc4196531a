"""The probe: a privileged pod on the node (native/probe.c, in the image as initd.local/probe:1), and its client.

    machine = Machine(config=..., networks=(Network(forward=(probe.PORT,)),))   # with probe.manifest() a static pod
    probe = Probe(machine)
    probe.read("/proc/1/status")

What it can do beyond looking is in qemu/faults.py by name.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import TYPE_CHECKING, Any

from qemu.errors import HarnessError

if TYPE_CHECKING:
    from qemu.machine import Machine

PORT = 9000
SHARED = "/var/lib/shared"  # a directory of the node, in the pod /shared, mounted bidirectionally


def pod(
    name: str, *containers: dict[str, Any], volumes: list[dict[str, Any]] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return a Pod manifest."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"containers": list(containers), "volumes": volumes or [], "terminationGracePeriodSeconds": 2, **spec},
    }


def container(name: str, image: str, *args: str, **fields: Any) -> dict[str, Any]:
    """Return a container that runs one of the image's programs."""
    return {"name": name, "image": f"initd.local/{image}:1", "imagePullPolicy": "Never", "args": list(args), **fields}


def manifest(port: int = PORT, *words: str, **spec: Any) -> dict[str, Any]:
    """Return the probe's pod, which listens on a port of the node. The word "deaf": only SIGKILL ends it."""
    return pod(
        "probe",
        container(
            "probe",
            "probe",
            str(port),
            *words,
            securityContext={"privileged": True},
            volumeMounts=[{"name": "shared", "mountPath": "/shared", "mountPropagation": "Bidirectional"}],
        ),
        volumes=[{"name": "shared", "hostPath": {"path": SHARED, "type": "DirectoryOrCreate"}}],
        hostPID=True,
        hostNetwork=True,
        **spec,
    )


def http_get(port: int, path: str, timeout: float = 30.0) -> tuple[int, str]:
    """GET from a forwarded port of 127.0.0.1; raises OSError if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode("latin-1")
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


class Probe:
    """Asks the probe of a machine, one of whose networks forwards its port. What it understands: native/probe.c."""

    def __init__(self, machine: Machine, port: int = PORT) -> None:
        self._port = machine.port(port)

    def __call__(self, command: str, *, timeout: float = 120.0, **parameters: object) -> dict[str, Any]:
        """Ask for one command and return whatever it says, {"error": "EROFS"} too.

        Raises OSError if nobody answers in timeout seconds, HarnessError if there is no such command.
        """
        query = urllib.parse.urlencode(
            {key: str(value) for key, value in parameters.items()}, quote_via=urllib.parse.quote
        )
        status, body = http_get(self._port, f"/{command}?{query}", timeout)
        if status != 200:
            raise HarnessError(f"probe {command} {parameters}: {body}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def do(self, command: str, *, timeout: float = 120.0, **parameters: object) -> dict[str, Any]:
        """Ask for one command; raises HarnessError if it failed in the node, else as a call does."""
        answer = self(command, timeout=timeout, **parameters)
        if answer.get("error"):
            raise HarnessError(f"probe {command} {parameters}: {answer['error']}")
        return answer

    def read(self, path: str) -> str:
        """Return a file's text; raises HarnessError if it cannot be read."""
        return str(self.do("read", path=path)["text"])

    def processes(self) -> list[dict[str, Any]]:
        """Return every process of the node."""
        found: list[dict[str, Any]] = self("processes")["processes"]
        return found

    def process(self, name: str) -> dict[str, Any]:
        """Return the one process of that name; raises HarnessError if there are none or many."""
        found = [process for process in self.processes() if process["comm"] == name]
        if len(found) != 1:
            raise HarnessError(f"{len(found)} processes named {name}")
        return found[0]
