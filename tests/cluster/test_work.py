"""Real work through the API server, on two nodes with a network and kube-proxy of the cluster's own."""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
import threading
from typing import IO, TYPE_CHECKING, Any

import pytest

from qemu.cluster.controlplane import HOST
from qemu.errors import HarnessError
from qemu.probe import http_get
from tests.cluster.conftest import NAMES
from tests.cluster.work import ECHO, NAMESPACE, SECONDS, container, controller, mount, pod, ready, shell, spec, state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.cluster.work import Work

WEB = 8080
MIB = 1 << 20


def test_a_daemon_set_has_a_pod_on_every_node(clients: Mapping[str, str]) -> None:
    assert set(clients) == set(NAMES)


def test_pods_of_both_nodes_see_each_other_by_their_own_addresses(work: Work, clients: Mapping[str, str]) -> None:
    addresses = {node: work.get("pods", name)["status"]["podIP"] for node, name in clients.items()}
    for here in NAMES:
        for there in NAMES:
            seen = work.run(clients[here], f"wget -T 10 -q -O - http://{addresses[there]}:{ECHO}/cgi-bin/who")
            assert seen == addresses[here], f"from {here} to {there}"
    assert work.run(clients["node-1"], f"wget -T 10 -q -O - http://{HOST}:{work.cluster.registry.port}/v2/") == "{}"


def test_a_deployment_behind_a_service(work: Work, clients: Mapping[str, str]) -> None:
    web = container(
        "web", "web", "serve", str(WEB),
        readinessProbe={"httpGet": {"path": "/", "port": WEB}, "periodSeconds": 1},
    )  # fmt: skip
    apart = {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    ports = [{"port": 80, "targetPort": WEB}]
    service = {"type": "NodePort", "selector": {"app": "web"}, "ports": ports}
    work.apply(
        controller("Deployment", "web", spec(web, affinity=affinity), replicas=2),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service},
    )
    work.until("deployments", "web", "available", lambda found: found["status"].get("availableReplicas") == 2)
    pods = work.pods("web")
    assert {found["spec"]["nodeName"] for found in pods} == set(NAMES)
    made = work.get("services", "web")["spec"]
    node_port = made["ports"][0]["nodePort"]
    for here, there in (NAMES, NAMES[::-1]):
        for address in (f"{made['clusterIP']}:80", f"{work.cluster.address(there)}:{node_port}"):
            script = f"for i in $(seq 20); do wget -T 10 -q -O - http://{address}/; done"
            answers = set(work.run(clients[here], script).split())
            assert answers == {found["metadata"]["name"] for found in pods}, f"from {here} to {address}"


@pytest.mark.cluster
def test_readiness_decides_what_a_service_reaches(work: Work) -> None:
    probe = {"exec": {"command": ["/bin/busybox", "test", "-e", "/ready"]}, "periodSeconds": 1}
    service = {"selector": {"app": "unready"}, "ports": [{"port": 80}]}
    work.apply(
        pod("unready", shell("main", "sleep 1d", readinessProbe=probe)),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "unready"}, "spec": service},
    )

    def ready_endpoints(slices: Any) -> list[bool]:
        return [each["conditions"]["ready"] for item in slices["items"] for each in item["endpoints"] or ()]

    def is_ready(value: bool) -> None:
        selector = "?labelSelector=kubernetes.io/service-name=unready"
        work.until("endpointslices", selector, f"ready: {value}", lambda slices: ready_endpoints(slices) == [value])

    work.until("pods", "unready", "running", lambda found: state(found, "main").get("running"))
    is_ready(False)
    work.run("unready", "touch /ready")
    is_ready(True)
    work.run("unready", "rm /ready")
    is_ready(False)


@pytest.mark.cluster
def test_a_container_that_fails_its_liveness_probe_is_started_again(work: Work) -> None:
    probe = {
        "exec": {"command": ["/bin/busybox", "test", "!", "-e", "/sick"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }
    main = shell("main", "echo life; sleep 1d", livenessProbe=probe)
    work.apply(pod("lives", main, restartPolicy="Always"))
    first = work.running("lives")
    work.run("lives", "touch /sick")

    def again(found: Any) -> bool:
        return found["status"]["containerStatuses"][0]["restartCount"] == 1 and ready(found)

    second = work.until("pods", "lives", "started again", again)
    assert first["status"]["podIP"] == second["status"]["podIP"], "the same pod"
    assert state(second, "main", "lastState")["terminated"]["exitCode"] == 137
    assert work.logs("lives", "--previous") == "life\n"


def test_exec_carries_input_output_and_the_exit_code(work: Work, clients: Mapping[str, str]) -> None:
    name = clients["node-2"]
    text = "".join(f"line {number}\n" for number in range(2000))
    assert work.kubectl("exec", "-i", name, "--", "/bin/busybox", "cat", text=text) == text
    with pytest.raises(HarnessError, match="exit code 3"):
        work.run(name, "exit 3")


@contextlib.contextmanager
def kubectl(work: Work, *arguments: str) -> Iterator[IO[str]]:
    """What a kubectl prints that runs meanwhile."""
    plane = work.cluster.control_plane
    command = [str(plane.programs / "kubectl"), f"--kubeconfig={plane.kubeconfig}", f"--namespace={NAMESPACE}"]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        end = threading.Timer(SECONDS, process.kill)  # what it prints is waited for no longer
        end.start()
        try:
            yield process.stdout
        finally:
            end.cancel()
            process.kill()


@pytest.mark.cluster
def test_logs_are_those_of_the_container_and_can_be_followed(work: Work) -> None:
    work.apply(pod("speaks", shell("main", "seq 1 500; until [ -e /go ]; do sleep 0.1; done; echo end >&2")))
    work.running("speaks")
    with kubectl(work, "logs", "speaks", "--follow") as output:
        assert [output.readline() for _ in range(500)] == [f"{number}\n" for number in range(1, 501)]
        work.run("speaks", "touch /go")
        assert output.read() == "end\n"
    work.ended("speaks")
    assert work.logs("speaks", "--tail=2").splitlines() == ["500", "end"]


def test_port_forward(work: Work, clients: Mapping[str, str]) -> None:
    with kubectl(work, "port-forward", f"pod/{clients['node-1']}", f":{ECHO}") as output:
        line = output.readline()
        match = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert match, line
        for _ in range(2):  # one tunnel, two connections
            answer = http_get(int(match[1]), "/cgi-bin/who")
            assert answer == (200, "127.0.0.1\n"), "who asks is inside the pod"


def test_config_map_and_secret_volumes_follow_what_they_show(work: Work) -> None:
    def objects(value: str) -> tuple[dict[str, Any], dict[str, Any]]:
        secret = base64.b64encode(f"secret {value}".encode()).decode()
        return (
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shown"}, "data": {"key": f"plain {value}"}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shown"}, "data": {"key": secret}},
        )

    main = shell(
        "main", "sleep 1d",
        env=[{"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "shown", "key": "key"}}}],
        volumeMounts=[mount("map", "/map"), mount("secret", "/secret")],
    )  # fmt: skip
    volumes = [
        {"name": "map", "configMap": {"name": "shown"}},
        {"name": "secret", "secret": {"secretName": "shown", "defaultMode": 0o400}},
    ]
    work.apply(*objects("one"), pod("shows", main, volumes=volumes))
    work.running("shows")
    script = (
        "cat /map/key; echo; cat /secret/key; echo; echo $KEY; stat -L -c %a /secret/key; df /secret | grep -c tmpfs"
    )
    assert work.run("shows", script).splitlines() == ["plain one", "secret one", "plain one", "400", "1"]
    work.apply(*objects("two"))
    wait = "while ! grep -q two /map/key || ! grep -q two /secret/key; do sleep 1; done"
    assert work.run("shows", f"{wait}; {script}").splitlines() == ["plain two", "secret two", "plain one", "400", "1"]


def test_a_projected_token_is_the_pod_s_own(work: Work) -> None:
    source = {"serviceAccountToken": {"path": "token", "audience": "vault.test", "expirationSeconds": 600}}
    names = {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}
    main = shell("main", "sleep 1d", volumeMounts=[mount("identity", "/identity")])
    volume = {"name": "identity", "projected": {"sources": [source, names]}}
    work.apply(pod("claims", main, volumes=[volume]))
    work.running("claims")
    token, name = work.run("claims", "cat /identity/token; echo; cat /identity/name").split()
    assert name == "claims"
    default = work.run("claims", "cat /var/run/secrets/kubernetes.io/serviceaccount/token")

    def review(token: str, *audiences: str) -> Any:
        body = {"spec": {"token": token, "audiences": audiences}}
        return work.api.create("/apis/authentication.k8s.io/v1/tokenreviews", body)["status"]

    reviewed = review(token, "vault.test")
    assert reviewed["authenticated"]
    assert reviewed["user"]["username"] == "system:serviceaccount:work:default"
    assert reviewed["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["claims"]
    assert not review(token).get("authenticated"), "nobody else's"
    assert review(default)["authenticated"]


@pytest.mark.cluster
def test_a_host_path_is_the_node_s(work: Work) -> None:
    volume = {"name": "host", "hostPath": {"path": "/var/lib/work", "type": "DirectoryOrCreate"}}
    for name, node, script in (
        ("writes", "node-1", "echo kept > /host/file"),
        ("reads", "node-1", "cat /host/file"),
        ("elsewhere", "node-2", "ls -A /host"),
    ):
        main = shell("main", script, volumeMounts=[mount("host", "/host")])
        work.apply(pod(name, main, volumes=[volume], nodeName=node))
        work.ended(name)
    assert (work.logs("reads"), work.logs("elsewhere")) == ("kept\n", "")
    image = {"name": "host", "hostPath": {"path": "/usr", "type": "Directory"}}
    main = shell("main", "touch /host/file", volumeMounts=[mount("host", "/host")])
    work.apply(pod("spoils", main, volumes=[image], nodeName="node-1"))
    work.ended("spoils", "Failed")
    assert "Read-only file system" in work.logs("spoils")


@pytest.mark.cluster
def test_an_empty_dir_in_memory_is_no_larger_than_its_limit(work: Work) -> None:
    script = "dd if=/dev/zero of=/memory/file bs=64k 2>/dev/null; stat -c %s /memory/file; stat -f -c %T /memory"
    volume = {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    work.apply(pod("bounded", shell("main", script, volumeMounts=[mount("memory", "/memory")]), volumes=[volume]))
    work.ended("bounded")
    assert work.logs("bounded").splitlines()[-2:] == [str(MIB), "tmpfs"]


@pytest.mark.cluster
def test_an_empty_dir_on_disk_that_outgrows_its_limit_is_evicted(work: Work) -> None:
    script = "dd if=/dev/zero of=/disk/file bs=1M count=4; sleep 1d"
    volume = {"name": "disk", "emptyDir": {"sizeLimit": "1Mi"}}
    work.apply(pod("grows", shell("main", script, volumeMounts=[mount("disk", "/disk")]), volumes=[volume]))
    work.evicted("grows", 'Usage of EmptyDir volume "disk" exceeds the limit "1Mi"')


@pytest.mark.cluster
def test_a_container_that_outgrows_its_ephemeral_storage_is_evicted(work: Work) -> None:
    script = "dd if=/dev/zero of=/file bs=1M count=8; sleep 1d"
    limits = {"limits": {"ephemeral-storage": "2Mi"}}
    work.apply(pod("spills", shell("main", script, resources=limits)))
    work.evicted("spills", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi")


@pytest.mark.cluster
def test_init_containers_run_one_after_the_other_before_the_rest(work: Work) -> None:
    mounts = [mount("shared", "/shared")]
    inits = [
        shell(name, f"test ! -e /shared/main; echo {name} >> /shared/order", volumeMounts=mounts)
        for name in ("first", "second")
    ]
    main = shell("main", "cat /shared/order", volumeMounts=mounts)
    work.apply(pod("prepared", main, initContainers=inits, volumes=[{"name": "shared", "emptyDir": {}}]))
    work.ended("prepared")
    assert work.kubectl("logs", "prepared", "--container=main") == "first\nsecond\n"


@pytest.mark.cluster
def test_a_pod_whose_init_container_fails_does_not_run(work: Work) -> None:
    inits = [shell("fails", "echo no; exit 1")]
    work.apply(pod("unprepared", shell("main", "echo ran"), initContainers=inits))
    found = work.ended("unprepared", "Failed")
    assert state(found, "fails")["terminated"]["exitCode"] == 1
    assert work.kubectl("logs", "unprepared", "--container=fails") == "no\n"
    assert "startedAt" not in state(found, "main").get("terminated", {}), "it never ran"
    assert "running" not in state(found, "main")


@pytest.mark.cluster
def test_a_sidecar_starts_first_outlives_the_rest_and_does_not_keep_the_pod(work: Work) -> None:
    mounts = [mount("shared", "/shared")]
    ends = 'trap "echo sidecar >> /shared/order; cat /shared/order; exit 0" TERM'
    script = f"{ends}; echo up > /shared/order; while :; do sleep 0.1; done"
    probe = {"exec": {"command": ["/bin/busybox", "test", "-e", "/shared/order"]}, "periodSeconds": 1}
    sidecar = shell("sidecar", script, restartPolicy="Always", startupProbe=probe, volumeMounts=mounts)
    main = shell("main", "cat /shared/order && echo main >> /shared/order", volumeMounts=mounts)
    volume = {"name": "shared", "emptyDir": {}}
    accompanied = pod("accompanied", main, initContainers=[sidecar], volumes=[volume], terminationGracePeriodSeconds=20)
    work.apply(accompanied)
    found = work.ended("accompanied")
    assert state(found, "sidecar")["terminated"]["exitCode"] == 0
    assert work.kubectl("logs", "accompanied", "--container=main") == "up\n"
    assert work.kubectl("logs", "accompanied", "--container=sidecar") == "up\nmain\nsidecar\n"


@pytest.mark.cluster
def test_a_job_runs_to_its_completions_and_past_failures(work: Work) -> None:
    volume = {"name": "host", "hostPath": {"path": "/var/lib/work-job", "type": "DirectoryOrCreate"}}
    script = 'test -e /host/failed || { touch /host/failed; exit 1; }; echo "done $JOB_COMPLETION_INDEX"'
    main = shell("main", script, volumeMounts=[mount("host", "/host")])
    template = spec(main, restartPolicy="Never", volumes=[volume], nodeName="node-2")
    job = {
        "completions": 2,
        "parallelism": 1,
        "completionMode": "Indexed",
        "backoffLimit": 3,
        "template": {"spec": template},
    }
    work.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "counts"}, "spec": job})

    def complete(found: Any) -> bool:
        return any(
            each["type"] == "Complete" and each["status"] == "True" for each in found["status"].get("conditions", ())
        )

    status = work.until("jobs", "counts", "complete", complete)["status"]
    assert (status["succeeded"], status["failed"], status["completedIndexes"]) == (2, 1, "0,1")


@pytest.mark.cluster
def test_a_container_that_outgrows_its_memory_is_killed_alone(work: Work) -> None:
    greedy = shell("greedy", "exec dd if=/dev/zero of=/dev/null bs=64M", resources={"limits": {"memory": "16Mi"}})
    modest = shell("modest", "sleep 1d")
    work.apply(pod("outgrows", greedy, modest))
    found = work.until("pods", "outgrows", "killed", lambda found: state(found, "greedy").get("terminated"))
    terminated = state(found, "greedy")["terminated"]
    assert (terminated["reason"], terminated["exitCode"]) == ("OOMKilled", 137)
    assert "running" in state(found, "modest")
