"""How a node leaves: cordoned, drained as budgets allow, NotReady at once; back again uncordoned; and one at a time."""

from __future__ import annotations

import http.server
import re
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from initd.api.protocol import ApiError, Code
from initd.turns import TURN_SECONDS
from qemu.cluster.api import StatusError
from qemu.probe import Probe
from tests.cluster.conftest import JOIN, status
from tests.cluster.work import NAMESPACE, container, controller, ready, spec
from tests.readme import README
from tests.vm.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qemu.cluster import Cluster
    from qemu.machine import Machine
    from tests.cluster.work import Work

BACK = 240.0  # seconds until a node that reboots is Ready again
RUNNING = 120.0
SLOTS = "/apis/coordination.k8s.io/v1/namespaces/initd-reboot/leases"
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


def web(name: str, replicas: int, hook_port: int = 0, **fields: Any) -> dict[str, Any]:
    main = container("web", "web", "serve", "8080")
    if hook_port:
        main["lifecycle"] = {"preStop": {"httpGet": {"host": "10.0.2.2", "port": hook_port, "path": f"/{name}"}}}
    return controller("Deployment", name, spec(main, terminationGracePeriodSeconds=10, **fields), replicas=replicas)


def budget(name: str, least: int) -> dict[str, Any]:
    body = {"minAvailable": least, "selector": {"matchLabels": {"app": name}}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": body}


def where(work: Work, app: str) -> list[str]:
    """The node of each pod of an app that is ready and not on its way out."""
    pods = [pod for pod in work.pods(app) if ready(pod) and "deletionTimestamp" not in pod["metadata"]]
    return sorted(pod["spec"]["nodeName"] for pod in pods)


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
    until(f"{name} ready", lambda: status(machine)["ready"], BACK)


@pytest.mark.cluster
def test_a_reboot_drains_with_hooks_and_budgets_and_comes_back(
    cluster: Cluster, nodes: Mapping[str, Machine], work: Work, hooked: list[str]
) -> None:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": {"app": "polite"}},
    }
    work.apply(budget("polite", 1), web("polite", 2, int(hooked[0]), topologySpreadConstraints=[spread]))
    until("a pod on each node", lambda: where(work, "polite") == ["node-1", "node-2"], RUNNING)
    machine = nodes["node-1"]
    with machine.next_boot(BACK):
        call(machine, "reboot")
        until("cordoned", lambda: node(cluster, "node-1")["spec"].get("unschedulable"), 30)
        assert CORDONED in node(cluster, "node-1")["metadata"]["annotations"]
        until("its pods elsewhere", lambda: where(work, "polite") == ["node-2"] * 2, RUNNING)
        until("NotReady", lambda: ready_condition(cluster, "node-1")["status"] == "False", 60)
        assert ready_condition(cluster, "node-1")["reason"] == "NodeShutdown"
        drained = machine.wait_for(lambda event: event["kind"] == "drain", 60.0, name="a drain")
        assert drained["left"] == []
    assert hooked.count("/polite") == 1, "the preStop hook ran"
    came_back(cluster, machine, "node-1")
    assert CORDONED not in node(cluster, "node-1")["metadata"].get("annotations", {})


@pytest.mark.cluster
def test_a_shutdown_leaves_as_a_reboot_does_and_the_node_stays_cordoned(
    cluster: Cluster, lone: Callable[..., Machine], hooked: list[str]
) -> None:
    machine = lone(cluster.config("node-3"))
    cluster.wait_ready("node-3")
    farewell = web("farewell", 1, int(hooked[0]), nodeSelector={"kubernetes.io/hostname": "node-3"})
    cluster.apply(farewell)
    try:
        cluster.kubectl("wait", "deployment/farewell", "--for=condition=Available", "--timeout=120s", timeout=130.0)
        call(machine, "shutdown")
        until("NotReady", lambda: ready_condition(cluster, "node-3")["reason"] == "NodeShutdown", 120)
        assert machine.wait_exit(60.0), "it is off"
    finally:
        cluster.kubectl("delete", "deployment", "farewell")
    assert hooked.count("/farewell") == 1, "the preStop hook ran"
    left = node(cluster, "node-3")
    assert left["spec"]["unschedulable"] is True
    assert CORDONED in left["metadata"]["annotations"]


@pytest.mark.cluster
def test_a_budget_that_cannot_be_met_is_honoured_until_the_deadline_by_a_second_worker_too(
    cluster: Cluster, nodes: Mapping[str, Machine], work: Work
) -> None:
    machine, probe = nodes["node-1"], Probe(nodes["node-1"])
    work.apply(budget("stubborn", 1), web("stubborn", 1, nodeSelector={"kubernetes.io/hostname": "node-1"}))
    until("its pod", lambda: where(work, "stubborn") == ["node-1"], RUNNING)
    with machine.next_boot(BACK):
        begun = time.monotonic()
        call(machine, "reboot")
        until("cordoned", lambda: node(cluster, "node-1")["spec"].get("unschedulable"), 30)
        probe.do("kill", pid=probe.process("initd-cluster")["pid"], signal=int(signal.SIGKILL))
        drained = machine.wait_for(lambda event: event["kind"] == "drain", 120.0, name="the drain's end")
        assert time.monotonic() - begun > 50, "the budget was honoured as long as drain_seconds says"
        assert len(drained["left"]) == 1
        assert drained["left"][0].startswith(f"{NAMESPACE}/stubborn-")
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
        state = until("Ready by its own word", lambda: (found := status(machine))["ready"] and found, BACK)
        assert state["cluster"]["cordoned"] is True
        assert node(cluster, "node-2")["spec"]["unschedulable"] is True
    finally:
        cluster.kubectl("uncordon", "node-2")


def holder(cluster: Cluster, number: int = 0) -> str | None:
    """Who holds a Lease for a reboot; None if nobody does."""
    try:
        lease = cluster.control_plane.api.get(f"{SLOTS}/slot-{number}")
    except StatusError as error:
        if error.code != 404:
            raise
        return None
    return lease["spec"].get("holderIdentity") or None


def hold(cluster: Cluster, number: int, name: str | None) -> None:
    """Have a Lease held by somebody else, or by nobody."""
    metadata = {"name": f"slot-{number}", "namespace": "initd-reboot"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
    cluster.apply({**lease, "spec": {"holderIdentity": name}})


def test_coordinated_reboots_need_a_role_and_the_node_says_so(nodes: Mapping[str, Machine]) -> None:
    before = nodes["node-1"].verify()["boot_id"]
    with pytest.raises(ApiError, match=r"may not .*: 403, see the README, Rights") as caught:
        call(nodes["node-1"], "reboot", False, True)
    assert caught.value.code is Code.PERMISSION_DENIED
    assert nodes["node-1"].verify()["boot_id"] == before


@pytest.mark.cluster
@pytest.mark.usefixtures("role")
def test_coordinated_reboots_go_one_at_a_time(cluster: Cluster, nodes: Mapping[str, Machine]) -> None:
    first, second = nodes["node-1"], nodes["node-2"]
    hold(cluster, 0, "node-9")
    boot_id = first.verify()["boot_id"]
    assert call(first, "reboot", False, True) is None
    assert "node-9" in status(first)["turn"]["waits_for"]
    assert status(first)["ready"], "it works on while it waits"
    assert first.verify()["boot_id"] == boot_id

    with first.next_boot(BACK):
        hold(cluster, 0, None)
        until("node-1 holds the Lease", lambda: holder(cluster) == "node-1", 60)
        assert call(second, "reboot", False, True) is None, "the other has to wait"
        assert "node-1" in status(second)["turn"]["waits_for"]
    with second.next_boot(BACK):
        came_back(cluster, first, "node-1")
        until("node-2 holds the Lease", lambda: holder(cluster) == "node-2", 60)
    came_back(cluster, second, "node-2")
    until("nobody holds the Lease", lambda: holder(cluster) is None, 60)


@pytest.mark.cluster
@pytest.mark.usefixtures("role")
def test_a_node_that_does_not_come_back_keeps_its_lease(cluster: Cluster, nodes: Mapping[str, Machine]) -> None:
    first, second = nodes["node-1"], nodes["node-2"]
    call(second, "reboot", False, True)
    until("node-2 holds the Lease", lambda: holder(cluster) == "node-2", 60)
    until("node-2 stops", lambda: ready_condition(cluster, "node-2")["status"] == "False", 120)
    second.pause()  # it hangs for good, as far as the cluster sees
    try:
        assert call(first, "reboot", False, True) is None
        assert "node-2" in status(first)["turn"]["waits_for"]
        first.wait_for(lambda event: event["kind"] == "turn", 10.0, name="a turn that is waited for")
        begun, boot_id = time.monotonic(), first.verify()["boot_id"]
        until("some more tries", lambda: time.monotonic() > begun + 5 * TURN_SECONDS, 6 * TURN_SECONDS)
        assert "node-2" in status(first)["turn"]["waits_for"]
        assert first.verify()["boot_id"] == boot_id
        assert holder(cluster) == "node-2"
    finally:
        second.resume()
    with first.next_boot(2 * BACK):
        came_back(cluster, second, "node-2")
    came_back(cluster, first, "node-1")


@pytest.mark.cluster
@pytest.mark.usefixtures("role")
def test_as_many_may_be_down_as_the_configuration_says(cluster: Cluster, lone: Callable[..., Machine]) -> None:
    for number, name in enumerate(("node-8", "node-9")):
        hold(cluster, number, name)
    machine = lone(cluster.config("node-3", cluster={"max_unavailable": 2}))
    cluster.wait_ready("node-3")
    until("ready", lambda: status(machine)["ready"], JOIN)
    assert call(machine, "reboot", False, True) is None
    assert re.search("node-8.*node-9", status(machine)["turn"]["waits_for"])
    with machine.next_boot(BACK):
        hold(cluster, 1, None)
        until("node-3 holds a Lease", lambda: holder(cluster, 1) == "node-3", 60)
    came_back(cluster, machine, "node-3")
    until("node-3 holds none", lambda: holder(cluster, 1) is None, 60)
    assert holder(cluster) == "node-8"


@pytest.fixture
def role(cluster: Cluster) -> Iterator[None]:
    """Nodes may do what the README's chapter Rights has a user apply, for one test."""
    (objects,) = re.findall(r"### Rights\n.*?```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    objects = objects.replace("[slot-0]", "[slot-0, slot-1]")  # as it says, for two
    cluster.kubectl("apply", "-f", "-", text=objects)
    yield
    cluster.kubectl("delete", "-f", "-", text=objects)  # the namespace with its Leases, too
