"""How a node stands in its cluster, how it leaves, and whose turn it is, against an API server without a wire."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.api.protocol import ApiError, Code
from initd.cluster import drain, joining, turn, worker
from initd.cluster.objects import Object
from initd.worker import Link
from tests.unit.cluster_fakes import Store

if TYPE_CHECKING:
    from pathlib import Path

    from initd.api.types import ClusterState
    from initd.cluster.server import Server

NODE = "/api/v1/nodes/node-1"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/initd-reboot/leases"
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
READY = {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"bootID": "boot-2"}}
URL = "https://10.0.2.2:6443"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(drain, "ROUND_SECONDS", 0.0)
    made = Store()
    made.put(NODE, status=READY)
    return made


def server(store: Store) -> Server:
    return cast("Server", store)


def refuse(code: Code, message: str, where: str) -> Any:
    """What a request whose path has `where` in it is answered."""

    def fail(_method: str, path: str) -> None:
        if where in path:
            raise ApiError(code, message)

    return fail


# Leaving.


def leave(store: Store, seconds: float = 5.0) -> drain.Drained:
    return asyncio.run(drain.drain(server(store), seconds))


class Kubelet:
    """Lets each pod that is evicted end, after so many more looks."""

    def __init__(self, store: Store, looks: int = 0) -> None:
        self._store, self._looks = store, looks
        store.fail = self

    def __call__(self, method: str, path: str) -> None:
        if method == "GET" and "/pods?" in path:
            self._looks -= 1
            for where, pod in list(self._store.objects.items()):
                if "deletionTimestamp" in pod["metadata"] and self._looks < 0:
                    del self._store.objects[where]


def evictions(store: Store) -> dict[str, Any]:
    return {
        path.split("/")[-2]: body["deleteOptions"] for method, path, body in store.did if path.endswith("/eviction")
    }


def test_a_node_is_cordoned_and_its_pods_end(store: Store) -> None:
    Kubelet(store, looks=3)
    for name in ("a", "b"):
        store.pod(name)
    assert leave(store) == {"evicted": 2, "left": []}
    node = store.objects[NODE]
    assert node["spec"] == {"unschedulable": True}
    assert node["metadata"]["annotations"] == {"initd.io/cordoned": "boot-2"}
    assert next(path for _, path, _ in store.did) == NODE, "a pod that goes must not come back here"
    assert len([path for _, path, _ in store.did if "eviction" in path]) == 2, "each once"


def test_what_somebody_else_has_cordoned_stays_theirs(store: Store) -> None:
    store.objects[NODE]["spec"]["unschedulable"] = True
    assert leave(store) == {"evicted": 0, "left": []}
    assert store.did == []


def test_a_pod_has_its_own_grace_up_to_the_time_that_is_left(store: Store) -> None:
    Kubelet(store)
    for name, grace in (("short", 2), ("long", 3600), ("usual", None)):
        store.pod(name, spec={} if grace is None else {"terminationGracePeriodSeconds": grace})
    leave(store, 20.0)
    found = evictions(store)
    assert found["short"] == {"preconditions": {"uid": "/api/v1/namespaces/default/pods/short"}}
    assert found["long"]["gracePeriodSeconds"] in {16, 17}
    assert found["usual"]["gracePeriodSeconds"] in {16, 17}
    store.pod("late")
    leave(store, 0.5)
    assert evictions(store)["late"]["gracePeriodSeconds"] == 1, "never killed at once"


def test_a_budget_is_honoured_until_the_deadline_and_the_pod_is_named(store: Store) -> None:
    said = "evict pods: 429, Cannot evict pod as it would violate the pod's disruption budget."
    asked = 0

    def budget(_method: str, path: str) -> None:
        nonlocal asked
        if path.endswith("web/eviction"):
            asked += 1
            if asked < 5:
                raise ApiError(Code.RESOURCE_EXHAUSTED, said)
            del store.objects["/api/v1/namespaces/default/pods/web"]

    store.pod("web")
    store.fail = budget
    assert leave(store)["left"] == []
    assert asked == 5
    store.pod("web")
    store.fail = refuse(Code.RESOURCE_EXHAUSTED, said, "eviction")
    assert leave(store, 0.2) == {"evicted": 0, "left": [f"default/web: {said}"]}


def test_pods_that_do_not_end_are_named_and_counted(store: Store) -> None:
    for number in range(23):
        store.pod(f"pod-{number}")
    result = leave(store, 0.2)
    assert (result["evicted"], len(result["left"])) == (23, 21)
    assert result["left"][0] == "default/pod-0: still ending"
    assert result["left"][-1] == "and 3 more"


def test_an_api_server_that_is_away_is_tried_again_but_not_for_the_cordon_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pod("web")
    store.fail = refuse(Code.UNAVAILABLE, "unreachable", NODE)
    monkeypatch.setattr(drain, "PATIENCE", 0.05)
    with pytest.raises(ApiError, match="unreachable"):
        leave(store)
    kubelet, failures = Kubelet(store), 3

    def away(method: str, path: str) -> None:
        nonlocal failures
        failures -= 1
        if failures in {0, 2}:
            raise ApiError(Code.UNAVAILABLE, "unreachable")
        kubelet(method, path)

    store.fail = away
    assert leave(store) == {"evicted": 1, "left": []}


@pytest.mark.parametrize("where", [NODE, "/pods?"])
def test_what_a_node_may_not_do_ends_the_drain_at_once(store: Store, where: str) -> None:
    store.pod("web")
    store.fail = refuse(Code.PERMISSION_DENIED, "may not: 403", where)
    with pytest.raises(ApiError, match="may not: 403"):
        leave(store, 60.0)


def test_a_pod_that_may_not_be_evicted_holds_up_no_other_and_is_not_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "PATIENCE", 0.2)
    kubelet = Kubelet(store)

    def fail(method: str, path: str) -> None:
        if "ending" in path and "eviction" in path:
            raise ApiError(Code.PERMISSION_DENIED, "may not evict pods: 403")
        kubelet(method, path)

    store.fail = fail
    for name in ("ending", "web"):
        store.pod(name)
    begun = time.monotonic()
    assert leave(store, 0.8) == {"evicted": 1, "left": ["default/ending: may not evict pods: 403"]}
    assert time.monotonic() - begun < 0.7


def test_a_cordon_is_tried_again_whatever_the_server_said(store: Store) -> None:
    kubelet = Kubelet(store)
    failures = [Code.INTERNAL, Code.RESOURCE_EXHAUSTED, Code.ABORTED]

    def fail(method: str, path: str) -> None:
        if path == NODE and failures:
            raise ApiError(failures.pop(), "not now")
        kubelet(method, path)

    store.fail = fail
    store.pod("web")
    assert leave(store) == {"evicted": 1, "left": []}


def test_a_cordon_of_an_earlier_boot_is_this_one_s_from_now_on(store: Store) -> None:
    store.put(NODE, status=READY, spec={"unschedulable": True}, metadata={"annotations": {drain.CORDONED: "boot-1"}})
    leave(store)
    assert store.objects[NODE]["metadata"]["annotations"] == {drain.CORDONED: "boot-2"}


def test_pods_that_could_not_even_be_listed_are_not_said_to_be_gone(store: Store) -> None:
    store.fail = refuse(Code.UNAVAILABLE, "unreachable", "/pods?")
    assert leave(store, 0.1) == {"evicted": 0, "left": ["its pods: unreachable"]}


def test_a_pod_that_was_made_anew_is_another_one(store: Store) -> None:
    """A StatefulSet's pod comes back under its name; the node is cordoned, so that is elsewhere, or pinned to it."""
    Kubelet(store)
    store.pod("db-0", metadata={"uid": "first"})

    def renew(method: str, path: str) -> None:
        if method == "GET" and "/pods?" in path and evictions(store) and len(store.did) == 2:
            store.pod("db-0", metadata={"uid": "second"})

    store.fail = renew
    assert leave(store, 0.2) == {"evicted": 2, "left": ["default/db-0: still ending"]}


_OWNERS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["DaemonSet", "ReplicaSet", "Node", "Job"])}, optional={"controller": st.booleans()}
)


@given(
    owners=st.lists(_OWNERS, max_size=3),
    annotations=st.dictionaries(st.sampled_from([drain.MIRROR, "other"]), st.text(max_size=3)),
    phase=st.sampled_from(["", "Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    ending=st.booleans(),
)
def test_the_pods_that_a_drain_has_to_do_with(
    owners: list[dict[str, Any]], annotations: dict[str, str], phase: str, ending: bool
) -> None:
    metadata = {"ownerReferences": owners, "annotations": annotations, "deletionTimestamp": "now" if ending else None}
    pod = msgspec.convert({"metadata": metadata, "status": {"phase": phase}}, Object)
    daemon = {"kind": "DaemonSet", "controller": True} in owners
    stays = daemon or drain.MIRROR in annotations or phase in {"Succeeded", "Failed"}
    assert drain.is_evicted(pod) is not stays


def test_it_is_said_that_the_node_is_not_ready(store: Store) -> None:
    asyncio.run(drain.not_ready(server(store), "reboot of the node"))
    ((method, path, body),) = store.did
    assert (method, path) == ("PATCH", f"{NODE}/status")
    (condition,) = body["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["message"]) == ("Ready", "False", "reboot of the node")


# Turns.


def take(store: Store, name: str = "node-1", count: int = 1, boot: str = "boot-2") -> list[str]:
    store.node, store.boot_id = name, boot
    return asyncio.run(turn.take(server(store), count))


def give_back(store: Store, name: str = "node-1", count: int = 1, boot: str = "boot-2") -> None:
    store.node, store.boot_id = name, boot
    asyncio.run(turn.give_back(server(store), count))


def holders(store: Store) -> list[str | None]:
    return [lease["spec"].get("holderIdentity") for path, lease in sorted(store.objects.items()) if "/leases/" in path]


def test_one_node_after_the_other(store: Store) -> None:
    assert take(store) == []
    assert take(store, "node-2") == ["slot-0 is held by node-1"]
    assert take(store) == [], "it is this node's already"
    give_back(store, "node-1", 1, "boot-2")
    assert holders(store) == ["node-1"], "not in the boot in which it was taken: the reboot is still to come"
    give_back(store, "node-2", 1, "boot-3")
    assert holders(store) == ["node-1"], "nor by another"
    give_back(store, "node-1", 1, "boot-3")
    assert holders(store) == [None]
    assert take(store, "node-2") == []
    assert store.actors == {turn.ACCOUNT}, "NodeRestriction lets a node have no Lease but its own heartbeat"


def test_a_node_that_has_a_turn_takes_no_second_one(store: Store) -> None:
    assert take(store, "node-2", count=2) == []
    assert take(store, "node-1", count=2) == []
    give_back(store, "node-2", 2, "boot-3")
    assert holders(store) == [None, "node-1"]
    assert take(store, "node-1", count=2, boot="boot-3") == []
    assert holders(store) == [None, "node-1"]
    give_back(store, "node-1", 2, "boot-3")
    assert holders(store) == [None, "node-1"], "taken anew in this boot"


class Racing(Store):
    """Lets another node go first at given moments: numbers of this one's requests."""

    def __init__(self, first: set[int], count: int) -> None:
        super().__init__()
        self._first, self._count, self._asked = first, count, 0
        self.sure: list[str] = []  # who was told that it has a turn

    async def request(self, *args: Any, **options: Any) -> Object:
        self._asked += 1
        if self._asked in self._first:
            self._first = self._first - {self._asked}
            other = f"other-{self._asked}"
            mine, self.node = self.node, other
            if not await turn.take(server(self), self._count):
                self.sure.append(other)
            self.node = mine
        return await super().request(*args, **options)


@given(first=st.sets(st.integers(1, 8), max_size=4), count=st.integers(1, 3), made=st.integers(0, 3))
def test_however_nodes_race_no_more_than_so_many_have_a_turn(first: set[int], count: int, made: int) -> None:
    store = Racing(first, count)
    for number in range(min(made, count)):
        store.put(f"{LEASES}/slot-{number}")
    if take(store, count=count) == []:
        store.sure.append("node-1")
    assert sorted(filter(None, holders(store))) == sorted(store.sure)
    assert len(store.sure) <= count


# Why a node has no certificate.


def signing_request(name: str, node: str, created: str, **status: Any) -> dict[str, Any]:
    subject = f"system:node:{node}".encode()
    der = b"\x30\x13" + bytes([len(subject) & 0xFF]) + subject + b"\x30"
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"
    request = base64.b64encode(pem).decode()
    return {"metadata": {"name": name, "creationTimestamp": created}, "spec": {"request": request}, "status": status}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "certificate signing request csr-2 pending approval"),
        (
            {"conditions": [{"type": "Denied", "message": "not one of ours"}]},
            "certificate signing request csr-2 denied: not one of ours",
        ),
        (
            {"conditions": [{"type": "Approved"}, {"type": "Failed", "reason": "SignerValidationFailure"}]},
            "certificate signing request csr-2 failed: SignerValidationFailure",
        ),
        ({"conditions": [{"type": "Approved"}]}, "certificate signing request csr-2 approved, not signed yet"),
        (
            {"conditions": [{"type": "Approved"}], "certificate": "AAAA"},
            "certificate signing request csr-2 signed; the kubelet has yet to take the certificate",
        ),
    ],
)
def test_what_became_of_the_signing_request(store: Store, status: dict[str, Any], words: str) -> None:
    def why() -> str:
        return asyncio.run(joining.why_not(server(store)))

    assert why() == "the kubelet has not sent a certificate signing request yet"
    others = [("csr-0", "node-1", "2026-01-01T00:00:01Z"), ("csr-9", "node-11", "2026-01-01T00:00:09Z")]
    for name, node, created in [*others, ("csr-2", "node-1", "2026-01-01T00:00:02Z")]:
        made = signing_request(name, node, created, **(status if name == "csr-2" else {}))
        store.put(f"{REQUESTS}/{name}", **made)
    assert why() == words


@given(request=st.binary(max_size=200), name=st.text("ab-", min_size=1, max_size=120))
def test_whatever_a_request_holds_it_is_read(request: bytes, name: str) -> None:
    joining.is_of(request, name)
    made = signing_request("csr", name, "")
    assert joining.is_of(base64.b64decode(made["spec"]["request"]), name)
    assert not joining.is_of(base64.b64decode(made["spec"]["request"]), f"{name}b")


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ({"token": "a.b"}, {"token": "a.b", "certificate": None, "key": None}),
        (
            {"client-certificate-data": "Q0VSVA==", "client-key-data": "S0VZ"},
            {"token": None, "certificate": "CERT", "key": "KEY"},
        ),
    ],
)
def test_the_bootstrap_kubeconfig_is_read(tmp_path: Path, user: dict[str, str], found: dict[str, str | None]) -> None:
    path = tmp_path / "kubeconfig"
    cluster = {"server": URL, "certificate-authority-data": "Q0E="}
    path.write_text(json.dumps({"clusters": [{"cluster": cluster}], "users": [{"user": user}]}))
    assert joining.read(str(path)) == {"server": URL, "ca": "CA", **found}


# How it stands.


class Bench:
    """A worker without a process, and what it told PID 1."""

    def __init__(self, patch: pytest.MonkeyPatch, store: Store, certificate: Path) -> None:
        self.store, self.told = store, list[Any]()
        self.certificate = certificate
        self.bootstrap: ApiError | None = None
        patch.setattr(worker, "CERTIFICATE", str(certificate))
        patch.setattr(worker, "Server", self._server)
        certificate.touch()

    def _server(self, _config: Any, certificate: str | None = None) -> Store:
        if certificate is None and self.bootstrap:
            raise self.bootstrap
        self.store.node, self.store.boot_id = "node-1", "boot-2"
        return self.store

    def make(self, told: ClusterState | None = None, **config: Any) -> worker.Cluster:
        link = cast("Link", Told(self.told))
        cluster = worker.Cluster(link)
        asyncio.run(cluster.configure(self.config(**config), told))
        return cluster

    def config(self, *, credentials: bool = True) -> dict[str, Any]:
        """What PID 1 gives."""
        path = self.certificate.with_name("kubeconfig")
        user = {"token": "t"} if credentials else {}
        made = {
            "clusters": [{"cluster": {"server": URL, "certificate-authority-data": "Q0E="}}],
            "users": [{"user": user}],
        }
        path.write_text(json.dumps(made))
        return {"kubeconfig": str(path), "name": "node-1", "boot_id": "boot-2", "max_unavailable": 1}

    def look(self, told: ClusterState | None = None, **config: Any) -> dict[str, Any]:
        """How the node stands, less the server."""
        state = dict(asyncio.run(self.make(told, **config).look()))
        assert state.pop("server") == URL
        return state


class Told:
    """The part of a link that the worker uses."""

    def __init__(self, told: list[Any]) -> None:
        self._told = told
        self.more = asyncio.Event()

    def handle(self, *_: object) -> None:
        """Handlers are called by the tests."""

    async def notify(self, method: str, state: Any) -> None:
        assert method == "state"
        self._told.append(state)
        self.more.set()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path) -> Bench:
    return Bench(monkeypatch, store, tmp_path / "client.pem")


def stands(
    *, joined: bool = True, ready: bool = False, cordoned: bool = False, reason: str | None = None
) -> dict[str, Any]:
    return {"joined": joined, "ready": ready, "cordoned": cordoned, "reason": reason}


def test_a_node_that_is_ready(bench: Bench) -> None:
    assert bench.look() == stands(ready=True)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({**READY, "nodeInfo": {"bootID": "boot-1"}}, "the kubelet has not reported since this boot"),
        ({**READY, "conditions": []}, "status missing"),
        (
            {**READY, "conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]},
            "NodeStatusUnknown",
        ),
        (
            {
                **READY,
                "conditions": [{"type": "Ready", "status": "False", "message": "container runtime network not ready"}],
            },
            "container runtime network not ready",
        ),
    ],
)
def test_a_node_that_is_not_ready(bench: Bench, status: dict[str, Any], reason: str) -> None:
    bench.store.put(NODE, status=status, spec={"unschedulable": True})
    assert bench.look() == stands(cordoned=True, reason=f"node NotReady: {reason}")


def test_a_node_that_is_not_registered(bench: Bench) -> None:
    del bench.store.objects[NODE]
    assert bench.look() == stands(joined=False, reason="node node-1 is not registered yet")


def test_an_api_server_that_is_away_takes_nothing_back(bench: Bench) -> None:
    bench.store.fail = refuse(Code.UNAVAILABLE, f"API server {URL}: unreachable: Connection refused", NODE)
    assert bench.look() == stands(reason=f"API server {URL}: unreachable: Connection refused")


def test_a_node_without_a_certificate_says_what_the_bootstrap_credentials_say(bench: Bench) -> None:
    bench.certificate.unlink()
    assert bench.look() == stands(joined=False, reason="the kubelet has not sent a certificate signing request yet")
    bench.store.put(f"{REQUESTS}/csr", **signing_request("csr", "node-1", ""))
    assert bench.look() == stands(joined=False, reason="certificate signing request csr pending approval")
    bench.bootstrap = ApiError(Code.UNAUTHENTICATED, "token refused (401)")
    assert bench.look() == stands(joined=False, reason="token refused (401)")
    bench.certificate.touch()
    bench.store.fail = refuse(Code.UNAUTHENTICATED, "client certificate refused (401)", NODE)
    assert bench.look() == stands(joined=False, reason="client certificate refused (401); token refused (401)")
    assert "no credentials" in bench.look(credentials=False)["reason"]


def test_what_initd_cordoned_in_an_earlier_boot_it_uncordons(bench: Bench) -> None:
    node = bench.store.put(
        NODE, status=READY, spec={"unschedulable": True}, metadata={"annotations": {drain.CORDONED: "boot-1"}}
    )
    assert bench.look() == stands(ready=True)
    node = bench.store.objects[NODE]
    assert (node["spec"], node["metadata"]["annotations"]) == ({}, {})


@pytest.mark.parametrize("annotations", [{}, {drain.CORDONED: "boot-2"}])
def test_what_others_cordoned_and_what_is_being_drained_stays(bench: Bench, annotations: dict[str, str]) -> None:
    bench.store.put(NODE, status=READY, spec={"unschedulable": True}, metadata={"annotations": annotations})
    assert bench.look() == stands(ready=True, cordoned=True)
    assert bench.store.did == []


def test_a_lease_is_given_back_once_the_node_is_ready_again(bench: Bench) -> None:
    assert take(bench.store, boot="boot-1") == []
    bench.store.put(NODE, status={**READY, "conditions": []})
    assert bench.look()["ready"] is False
    assert holders(bench.store) == ["node-1"]
    bench.store.put(NODE, status=READY)
    ready = cast("ClusterState", {"server": URL, **stands(ready=True)})
    assert bench.look(told=ready)["ready"] is True
    assert holders(bench.store) == ["node-1"], "asked for at each look"
    assert bench.look() == stands(ready=True)
    assert holders(bench.store) == [None]


@pytest.mark.parametrize("where", [NODE, "/leases/"])
def test_what_is_owed_is_tried_again_until_it_is_done(bench: Bench, where: str) -> None:
    assert take(bench.store, boot="boot-1") == []
    bench.store.put(
        NODE, status=READY, spec={"unschedulable": True}, metadata={"annotations": {drain.CORDONED: "boot-1"}}
    )
    cluster = bench.make()

    def fail(method: str, path: str) -> None:
        if method == "PATCH" and where in path:
            raise ApiError(Code.INTERNAL, "500, etcdserver: leader changed")

    bench.store.fail = fail
    found = asyncio.run(cluster.look())
    assert (found["ready"], found["reason"]) == (True, "500, etcdserver: leader changed")
    bench.store.fail = lambda *_: None
    found = asyncio.run(cluster.look())
    assert (found["reason"], found["cordoned"], holders(bench.store)) == (None, False, [None])


def test_a_node_that_is_being_drained_is_not_uncordoned(bench: Bench) -> None:
    bench.store.put(
        NODE, status=READY, spec={"unschedulable": True}, metadata={"annotations": {drain.CORDONED: "boot-2"}}
    )
    cluster = bench.make()
    asyncio.run(cluster.drain(5.0))
    bench.store.objects[NODE]["metadata"]["annotations"] = {drain.CORDONED: "boot-1"}
    assert asyncio.run(cluster.look())["cordoned"] is True


def test_what_a_node_may_not_do_is_said_and_it_goes_on(bench: Bench) -> None:
    annotations = {drain.CORDONED: "boot-1"}
    bench.store.put(NODE, status=READY, spec={"unschedulable": True}, metadata={"annotations": annotations})

    def fail(method: str, path: str) -> None:
        if method == "PATCH" or "/leases/" in path:
            raise ApiError(Code.PERMISSION_DENIED, "may not uncordon the node: 403, see the README, Rights")

    bench.store.fail = fail
    reason = "may not uncordon the node: 403, see the README, Rights"
    assert bench.look() == stands(ready=True, cordoned=True, reason=reason)
    bench.store.put(NODE, status=READY)
    assert bench.look() == stands(ready=True), "who may have no Lease has none to give back"


def test_changes_are_told_and_nothing_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SOON", 0.0)
    monkeypatch.setattr(worker, "RESTED", 0.0)
    looks = [ZeroDivisionError("an answer like no other"), stands(reason="a"), stands(reason="a"), stands(ready=True)]
    settled: list[bool] = []

    async def whole() -> None:
        cluster, done = worker.Cluster(cast("Link", Told(bench.told))), asyncio.Event()
        watching = asyncio.ensure_future(cluster.watch())
        assert cluster.rest() is None

        async def look() -> Any:
            settled.append(cluster.rest() is not None)
            if not looks:
                done.set()
                await asyncio.Event().wait()
            state = looks.pop(0)
            if isinstance(state, Exception):
                raise state
            return state

        monkeypatch.setattr(cluster, "look", look)
        await cluster.configure(bench.config())
        async with asyncio.timeout(10):
            await done.wait()
        watching.cancel()

    asyncio.run(whole())
    assert [state["reason"] for state in bench.told] == ["ZeroDivisionError: an answer like no other", "a", None]
    assert settled == [False] * 5, "it does not rest while it looks"


def test_it_rests_when_the_node_is_ready_and_not_while_it_leaves(bench: Bench) -> None:
    async def whole() -> None:
        cluster = worker.Cluster(cast("Link", link := Told(bench.told)))
        watching = asyncio.ensure_future(cluster.watch())
        await cluster.configure(bench.config())
        async with asyncio.timeout(10):
            await link.more.wait()
            await asyncio.sleep(0)
            assert cluster.rest() == (60.0, [])
            await cluster.drain(1.0)
            assert cluster.rest() is None
        watching.cancel()

    asyncio.run(whole())


def test_a_call_before_the_configuration_is_refused_in_words(bench: Bench) -> None:
    cluster = worker.Cluster(cast("Link", Told(bench.told)))
    with pytest.raises(ApiError, match="not configured yet"):
        asyncio.run(cluster.drain(1.0))
