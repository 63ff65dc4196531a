"""What the VM tests share: one booted node with the probe and the web pod."""

from __future__ import annotations

import http.server
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from qemu.net import Network
from qemu.probe import Probe
from tests.vm import manifests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qemu.machine import Machine

RUNNING_TIMEOUT = 120.0
POLL = 0.2
FORWARD = (manifests.WEB_PORT, manifests.PROBE_PORT)


@pytest.fixture(scope="session")
def node_options() -> dict[str, Any]:
    """What the shared node is made with."""
    return {
        "config": manifests.config(manifests.probe(), manifests.web()),
        "networks": (Network(forward=FORWARD),),
    }


@pytest.fixture(scope="session")
def running(node: Machine) -> Machine:
    """The shared node, once its pods run."""
    wait_for_pods(node, "probe", "web")
    return node


@pytest.fixture(scope="session")
def probe(running: Machine) -> Probe:
    """The probe of the shared node."""
    return Probe(running)


def until(what: str, check: Callable[[], Any], timeout: float = RUNNING_TIMEOUT) -> Any:
    """Return check()'s first true answer; asks again until then, for timeout seconds. An OSError counts as no."""
    end = time.monotonic() + timeout
    last: object = None
    while time.monotonic() < end:
        try:
            last = check()
        except OSError as error:
            last = error
        else:
            if last:
                return last
        time.sleep(POLL)
    pytest.fail(f"{what}: not within {timeout:g} s; last: {last}")


def pods(machine: Machine) -> dict[str, Mapping[str, Any]]:
    """Return the node's pods by name, of each the newest."""
    with machine.client() as client:
        found = sorted(client.call("pods"), key=lambda pod: float(pod["created"]))
    return {pod["name"].split("-")[0]: pod for pod in found}


def containers_run(machine: Machine, *names: str) -> bool:
    """Say whether these pods are there and all their containers run."""
    found = pods(machine)
    return all(
        name in found
        and found[name]["containers"]
        and all(container["state"] == "running" for container in found[name]["containers"])
        for name in names
    )


def wait_for_pods(machine: Machine, *names: str, timeout: float = RUNNING_TIMEOUT) -> None:
    """Wait until the API says that all containers of these pods run."""
    until(f"pods {', '.join(names)} running", lambda: containers_run(machine, *names), timeout)


def service(machine: Machine, name: str) -> dict[str, Any]:
    """Return one service's status."""
    with machine.client() as client:
        found: dict[str, Any] = next(entry for entry in client.call("services") if entry["name"] == name)
        return found


@pytest.fixture(scope="session")
def outside() -> Iterator[int]:
    """An HTTP server of the host, outside the node (10.0.2.2 as the node sees it); returns its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello from outside")

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
