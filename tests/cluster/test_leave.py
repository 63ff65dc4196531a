"""How a node leaves: cordoned, drained as budgets allow, NotReady at once; back again uncordoned; and one at a time."""

from __future__ import annotations

import http.server
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from initd.api.protocol import ApiError, Code
from qemu.cluster.api import StatusError
from qemu.probe import container
from tests.readme import README
from tests.vm.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qemu.cluster import Cluster
    from qemu.machine import Machine

BACK = 240.0  # seconds until a node that reboots is Ready again
RUNNING = 120.0
SLOTS = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
CORDONED = "initd.io/cordoned"


@pytest.fixture(scope="module")
def hooked() -> Iterator[list[str]]:
    """An HTTP server of the host for preStop hooks: first its port at 10.0.2.2, then the paths that were asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        paths.append(str(server.server_address[1]))
        yield paths
        server.shutdown()


def deployment(name: str, replicas: int, hook_port: int = 0, **spec: Any) -> dict[str, Any]:
    web = container("web", "web", "serve", "8080")
    if hook_port:
        web["lifecycle"] = {"preStop": {"httpGet": {"host": "10.0.2.2", "port": hook_port, "path": f"/{name}"}}}
    labels = {"app": name}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [web], "terminationGracePeriodSeconds": 10, **spec},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def budget(name: str, least: int) -> dict[str, Any]:
    spec = {"minAvailable": least, "selector": {"matchLabels": {"app": name}}}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}


@pytest.fixture
def applied(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Create objects that are gone after the test."""
    made: list[Mapping[str, Any]] = []

    def apply(*objects: Mapping[str, Any]) -> None:
        made.extend(objects)
        cluster.apply(*objects)

    yield apply
    for each in reversed(made):
        cluster.kubectl("delete", each["kind"], each["metadata"]["name"], "-n", each["metadata"]["namespace"], "--wait")


def where(cluster: Cluster, app: str) -> list[str]:
    """The node of each pod of an app that is ready and not on its way out."""
    pods = cluster.control_plane.api.get(f"/api/v1/namespaces/default/pods?labelSelector=app%3D{app}")["items"]
    return sorted(pod["spec"]["nodeName"] for pod in pods if _good(pod))


def _good(pod: Mapping[str, Any]) -> bool:
    conditions = {entry["type"]: entry["status"] for entry in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def node(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.control_plane.api.get(f"/api/v1/nodes/{name}")
    return found


def ready_condition(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in node(cluster, name)["status"]["conditions"] if c["type"] == "Ready")
    return found


def call(machine: Machine, method: str, *params: object) -> Any:
    with machine.client() as client:
        return client.call(method, *params)


def came_back(cluster: Cluster, machine: Machine, name: str) -> None:
    """Wait until a node that reboots is Ready, and uncordoned, by its own word too."""
    cluster.wait_ready(name, BACK)
    until(f"{name} uncordoned", lambda: not node(cluster, name)["spec"].get("unschedulable"), BACK)
    until(f"{name} ready", lambda: call(machine, "status")["ready"], BACK)


@pytest.mark.cluster
def test_a_reboot_drains_with_hooks_and_budgets_and_comes_back(
    cluster: Cluster, nodes: Mapping[str, Machine], applied: Callable[..., None], hooked: list[str]
) -> None:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": {"app": "polite"}},
    }
    applied(budget("polite", 1), deployment("polite", 2, int(hooked[0]), topologySpreadConstraints=[spread]))
    until("a pod on each node", lambda: where(cluster, "polite") == ["node-1", "node-2"], RUNNING)
    machine = nodes["node-1"]
    with machine.next_boot(BACK):
        call(machine, "reboot")
        until("cordoned", lambda: node(cluster, "node-1")["spec"].get("unschedulable"), 30)
        assert CORDONED in node(cluster, "node-1")["metadata"]["annotations"]
        until("its pods elsewhere", lambda: where(cluster, "polite") == ["node-2"] * 2, RUNNING)
        until("NotReady", lambda: ready_condition(cluster, "node-1")["status"] == "False", 60)
        assert ready_condition(cluster, "node-1")["reason"] == "NodeShutdown"
        drained = machine.wait_for(lambda event: event["kind"] == "drain", 60.0, name="a drain")
        assert drained["left"] == []
    assert hooked[1:] == ["/polite"], "the preStop hook ran"
    came_back(cluster, machine, "node-1")
    assert CORDONED not in node(cluster, "node-1")["metadata"].get("annotations", {})


@pytest.mark.cluster
def test_a_budget_that_cannot_be_met_is_honoured_until_the_deadline(
    cluster: Cluster, nodes: Mapping[str, Machine], applied: Callable[..., None]
) -> None:
    machine = nodes["node-1"]
    applied(budget("stubborn", 1), deployment("stubborn", 1, nodeSelector={"kubernetes.io/hostname": "node-1"}))
    until("its pod", lambda: where(cluster, "stubborn") == ["node-1"], RUNNING)
    with machine.next_boot(BACK):
        begun = time.monotonic()
        call(machine, "reboot")
        drained = machine.wait_for(lambda event: event["kind"] == "drain", 120.0, name="the drain's end")
        assert time.monotonic() - begun > 50, "the budget was honoured as long as drain_seconds says"
        assert len(drained["left"]) == 1
        assert drained["left"][0].startswith("default/stubborn-")
        assert "budget" in drained["left"][0]
    came_back(cluster, machine, "node-1")


@pytest.mark.cluster
def test_a_node_that_a_person_cordoned_stays_cordoned(cluster: Cluster, nodes: Mapping[str, Machine]) -> None:
    machine = nodes["node-2"]
    cluster.kubectl("cordon", "node-2")
    try:
        with machine.next_boot(BACK):
            call(machine, "reboot")
        cluster.wait_ready("node-2", BACK)
        state = until("Ready by its own word", lambda: (s := call(machine, "status"))["ready"] and s, BACK)
        assert state["cluster"]["cordoned"] is True
        assert node(cluster, "node-2")["spec"]["unschedulable"] is True
    finally:
        cluster.kubectl("uncordon", "node-2")


def holder(cluster: Cluster) -> str | None:
    """Who holds the one Lease that there is with maxUnavailable 1; None if nobody does."""
    try:
        lease = cluster.control_plane.api.get(f"{SLOTS}/initd-reboot-0")
    except StatusError:
        return None
    return lease["spec"].get("holderIdentity") or None


@pytest.mark.cluster
def test_coordinated_reboots_need_a_role_and_the_node_says_so(nodes: Mapping[str, Machine]) -> None:
    before = nodes["node-1"].verify()["boot_id"]
    with pytest.raises(ApiError, match=r"may not .*: 403, see the README, Rights") as caught:
        call(nodes["node-1"], "reboot", False, True)
    assert caught.value.code is Code.PERMISSION_DENIED
    assert nodes["node-1"].verify()["boot_id"] == before


@pytest.mark.cluster
def test_coordinated_reboots_go_one_at_a_time(
    cluster: Cluster, nodes: Mapping[str, Machine], role: Callable[[], None]
) -> None:
    role()
    api, first, second = cluster.control_plane.api, nodes["node-1"], nodes["node-2"]
    metadata = {"name": "initd-reboot-0", "namespace": "kube-system"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
    lease["spec"] = {"holderIdentity": "node-9"}
    if holder(cluster) is None:
        try:
            api.create(SLOTS, lease)
        except StatusError:
            api.patch(f"{SLOTS}/initd-reboot-0", {"spec": lease["spec"]})
    boot_id = first.verify()["boot_id"]
    assert call(first, "reboot", False, True) is None
    assert "node-9" in call(first, "status")["turn"]["waits_for"]
    assert call(first, "status")["ready"], "it works on while it waits"
    assert first.verify()["boot_id"] == boot_id

    with first.next_boot(BACK):
        api.patch(f"{SLOTS}/initd-reboot-0", {"spec": {"holderIdentity": None}})
        until("node-1 holds the Lease", lambda: holder(cluster) == "node-1", 60)
        assert call(second, "reboot", False, True) is None, "the other has to wait"
        assert "node-1" in call(second, "status")["turn"]["waits_for"]
    with second.next_boot(BACK):
        came_back(cluster, first, "node-1")
        until("node-2 holds the Lease", lambda: holder(cluster) == "node-2", 60)
    came_back(cluster, second, "node-2")
    until("nobody holds the Lease", lambda: holder(cluster) is None, 60)


@pytest.mark.cluster
def test_a_node_that_does_not_come_back_keeps_its_lease(
    cluster: Cluster, nodes: Mapping[str, Machine], role: Callable[[], None]
) -> None:
    role()
    first, second = nodes["node-1"], nodes["node-2"]
    call(second, "reboot", False, True)
    until("node-2 holds the Lease", lambda: holder(cluster) == "node-2", 60)
    until("node-2 stops", lambda: ready_condition(cluster, "node-2")["status"] == "False", 120)
    second.pause()  # it hangs for good, as far as the cluster sees
    try:
        assert call(first, "reboot", False, True) is None
        assert "node-2" in call(first, "status")["turn"]["waits_for"]
        first.wait_for(lambda event: event["kind"] == "turn", 10.0, name="a turn that is waited for")
        assert holder(cluster) == "node-2"
    finally:
        second.resume()
    with first.next_boot(2 * BACK):
        came_back(cluster, second, "node-2")
    came_back(cluster, first, "node-1")


@pytest.fixture(scope="module")
def role(cluster: Cluster) -> Callable[[], None]:
    """Grant nodes what the README's chapter Rights has a user apply."""
    (objects,) = re.findall(r"### Rights\n.*?```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    return lambda: print(cluster.kubectl("apply", "-f", "-", text=objects))
