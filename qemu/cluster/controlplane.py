"""A control plane on loopback: etcd, API server, controller manager and scheduler as processes of this host, with
certificates of their own. Nodes reach it at the host's address in QEMU's user network.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from qemu.cluster import egress
from qemu.cluster.api import Api, StatusError
from qemu.errors import HarnessError
from qemu.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOPBACK = "127.0.0.1"
HOST = "10.0.2.2"  # loopback of the host, as a guest of QEMU's user network reaches it
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"  # the first address, which the API server takes for itself
READY_SECONDS = 120.0
POLL = 0.1
_TAIL = 3000  # characters of a program's log that explain a failure
_RBAC = "rbac.authorization.k8s.io"
# What a cluster that nodes join by themselves grants them: bootstrap tokens may ask for certificates, the controller
# manager signs those of clients. Names of roles: Kubernetes' TLS bootstrapping documentation.
_BINDINGS = {
    "kubelet-bootstrap": ("system:node-bootstrapper", "system:bootstrappers"),
    "node-client-csr": (
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "system:bootstrappers",
    ),
    "node-client-renewal": ("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "system:nodes"),
    "kubelet-api": ("system:kubelet-api-admin", "initd:apiserver"),
}


class ControlPlane:
    """One control plane. programs: the folder of its binaries; folder: where its files go, which is made; uds: the
    socket of its egress proxy, a path of at most 107 bytes.

    dial(host, port) connects the API server to a kubelet, and raises OSError if it cannot. certificate_seconds: how
    long the certificates live that the controller manager signs.
    """

    def __init__(
        self,
        programs: Path,
        folder: Path,
        uds: Path,
        dial: Callable[[str, int], socket.socket],
        certificate_seconds: int = 86400,
    ) -> None:
        self.programs = programs
        self.folder = folder
        self.port = _free_port()
        self.pki = folder / "pki"
        self._uds = uds
        self.kubeconfig = folder / "admin.kubeconfig"
        self._dial = dial
        self._certificate_seconds = certificate_seconds
        self._etcd_port = _free_port()
        self._running: dict[str, Process] = {}
        self._stack = contextlib.ExitStack()
        self._stopping = threading.Event()
        self.api: Api

    def start(self) -> None:
        """Start everything; returns when the API server is ready and nodes may join. Raises HarnessError."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._certificates()
        self.api = Api(self.port, self.pki / "ca.crt", self.pki / "admin.crt", self.pki / "admin.key")
        for user in ("admin", "controller-manager", "scheduler"):
            self.write_kubeconfig(self.folder / f"{user}.kubeconfig", user)
        proxy = egress.Proxy(self._uds, self._dial)
        self._stack.callback(proxy.close)
        self._run("etcd", self._etcd())
        self.start_api()
        self._grant()
        self._run("kube-controller-manager", self._controller_manager(), again=True)
        kubeconfig = f"--kubeconfig={self.folder}/scheduler.kubeconfig"
        self._run("kube-scheduler", [kubeconfig, "--leader-elect=false", "--secure-port=0"], again=True)
        approver = threading.Thread(target=self._approve, name="approver", daemon=True)
        approver.start()
        self._stack.callback(approver.join)

    def stop(self) -> None:
        """End all of it; its files stay."""
        self._stopping.set()
        for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            self.end(name)
        self._stack.close()

    def start_api(self) -> None:
        """Start the API server, at the address that it had; returns when it is ready."""
        self._run("kube-apiserver", self._api_server())
        self.wait(f"the API server at {LOOPBACK}:{self.port}", self._ready, READY_SECONDS)

    def end(self, name: str) -> None:
        """Kill one of the programs, as a crash would; it is not started again by itself."""
        if process := self._running.pop(name, None):
            process.kill()

    def wait(self, what: str, check: Callable[[], Any], timeout: float) -> Any:
        """Return check()'s first true answer. Raises HarnessError with the logs' ends after timeout seconds."""
        end = time.monotonic() + timeout
        last: object = None
        while time.monotonic() < end:
            try:
                if last := check():
                    return last
            except (OSError, StatusError) as error:
                last = error
            self.check(what)
            time.sleep(POLL)
        raise HarnessError(f"{what}: not within {timeout:g} s; last: {last}", detail=self.logs())

    def check(self, what: str) -> None:
        """Raise HarnessError with their logs' ends, and what it is bad for, if etcd or the API server ended."""
        running = [(name, self._running.get(name)) for name in ("etcd", "kube-apiserver")]
        if dead := [name for name, process in running if process and process.status is not None]:
            raise HarnessError(f"{what}: {', '.join(dead)} ended", detail=self.logs(dead))

    def logs(self, names: list[str] | None = None) -> str:
        """The end of each program's log."""
        parts = []
        for name in names or list(self._running):
            path = self.folder / f"{name}.log"
            text = path.read_text(errors="replace") if path.exists() else ""
            parts.append(f"--- {name} ---\n{text[-_TAIL:]}")
        return "\n".join(parts)

    def bootstrap_token(self, seconds: float = 3600.0) -> str:
        """Make a bootstrap token that is good for so many seconds, and return it."""
        token = f"{secrets.token_hex(3)}.{secrets.token_hex(8)}"
        self.restore(token, seconds)
        return token

    def restore(self, token: str, seconds: float = 3600.0) -> None:
        """Make a token that was revoked or expired good again."""
        token_id, _, secret = token.partition(".")
        self.api.create(
            "/api/v1/namespaces/kube-system/secrets",
            {
                "metadata": {"name": f"bootstrap-token-{token_id}"},
                "type": "bootstrap.kubernetes.io/token",
                "stringData": {
                    "token-id": token_id,
                    "token-secret": secret,
                    "usage-bootstrap-authentication": "true",
                    "expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds)),
                },
            },
        )

    def revoke(self, token: str) -> None:
        """Delete a bootstrap token."""
        self.api.delete(f"/api/v1/namespaces/kube-system/secrets/bootstrap-token-{token.partition('.')[0]}")

    def bootstrap_kubeconfig(self, token: str, server: str | None = None, ca: Path | None = None) -> str:
        """Return the text of a kubeconfig with which a node joins by `token`."""
        ca = ca or self.pki / "ca.crt"
        return _kubeconfig(server or f"https://{HOST}:{self.port}", ca, {"token": token})

    def write_kubeconfig(self, path: Path, user: str) -> None:
        """Write a kubeconfig of this host for a user that `pki` has a certificate of."""
        credentials = {
            "client-certificate": f"{self.pki}/{user}.crt",
            "client-key": f"{self.pki}/{user}.key",
        }
        path.write_text(_kubeconfig(f"https://{LOOPBACK}:{self.port}", self.pki / "ca.crt", credentials))

    # Its parts.

    def _certificates(self) -> None:
        from qemu.cluster import pki  # noqa: PLC0415 what it needs is locked with a clone's tests, not installed

        self.pki.mkdir(mode=0o700, exist_ok=True)
        authority = pki.Authority(self.pki)
        authority.issue("etcd", "etcd", hosts=[LOOPBACK])
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        authority.issue("apiserver", "kube-apiserver", hosts=[LOOPBACK, HOST, KUBERNETES_SERVICE, *names])
        authority.issue("apiserver-client", "kube-apiserver", ["initd:apiserver"])
        authority.issue("admin", "admin", ["system:masters"])
        authority.issue("controller-manager", "system:kube-controller-manager")
        authority.issue("scheduler", "system:kube-scheduler")
        authority.key_pair("service-accounts")

    def _etcd(self) -> list[str]:
        url = f"https://{LOOPBACK}:{self._etcd_port}"
        return [
            f"--data-dir={self.folder}/etcd", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
            f"--listen-peer-urls=http://{LOOPBACK}:0", "--unsafe-no-fsync", "--log-level=warn",
            f"--cert-file={self.pki}/etcd.crt", f"--key-file={self.pki}/etcd.key",
            f"--trusted-ca-file={self.pki}/ca.crt", "--client-cert-auth",
        ]  # fmt: skip

    def _api_server(self) -> list[str]:
        selection = {
            "name": "cluster",
            "connection": {
                "proxyProtocol": "HTTPConnect",
                "transport": {"uds": {"udsName": str(self._uds)}},
            },
        }
        selector = {
            "apiVersion": "apiserver.k8s.io/v1beta1",
            "kind": "EgressSelectorConfiguration",
            "egressSelections": [selection],
        }
        (self.folder / "egress.json").write_text(json.dumps(selector))
        return [
            f"--bind-address={LOOPBACK}", f"--secure-port={self.port}", f"--advertise-address={HOST}",
            f"--etcd-servers=https://{LOOPBACK}:{self._etcd_port}", f"--etcd-cafile={self.pki}/ca.crt",
            f"--etcd-certfile={self.pki}/apiserver-client.crt", f"--etcd-keyfile={self.pki}/apiserver-client.key",
            f"--tls-cert-file={self.pki}/apiserver.crt", f"--tls-private-key-file={self.pki}/apiserver.key",
            f"--client-ca-file={self.pki}/ca.crt", "--enable-bootstrap-token-auth",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.pki}/service-accounts.pub",
            f"--service-account-signing-key-file={self.pki}/service-accounts.key",
            f"--kubelet-client-certificate={self.pki}/apiserver-client.crt",
            f"--kubelet-client-key={self.pki}/apiserver-client.key",
            f"--kubelet-certificate-authority={self.pki}/ca.crt", "--kubelet-preferred-address-types=InternalIP",
            f"--service-cluster-ip-range={SERVICES}", "--allow-privileged=true",
            f"--egress-selector-config-file={self.folder}/egress.json", f"--cert-dir={self.folder}",
        ]  # fmt: skip

    def _controller_manager(self) -> list[str]:
        return [
            f"--kubeconfig={self.folder}/controller-manager.kubeconfig", "--leader-elect=false", "--secure-port=0",
            "--controllers=*,tokencleaner", "--use-service-account-credentials",
            f"--root-ca-file={self.pki}/ca.crt", f"--service-account-private-key-file={self.pki}/service-accounts.key",
            f"--cluster-signing-cert-file={self.pki}/ca.crt", f"--cluster-signing-key-file={self.pki}/ca.key",
            f"--cluster-signing-duration={self._certificate_seconds}s",
            "--allocate-node-cidrs", f"--cluster-cidr={PODS}", f"--service-cluster-ip-range={SERVICES}",
        ]  # fmt: skip

    def _run(self, name: str, arguments: list[str], *, again: bool = False) -> None:
        """Start a program; `again`: also whenever it ends by itself, as some do while the API server is away."""
        program = self.programs / name
        if not program.exists():
            raise HarnessError(f"{program}: no such program", "build it: python -m rootfs cluster")

        def ended(_status: int) -> None:
            if again and not self._stopping.wait(1.0) and self._running.get(name) is process:
                self._run(name, arguments, again=True)

        process = Process([str(program), *arguments], (), self.folder / f"{name}.log", ended)
        self._running[name] = process
        process.start()

    def _ready(self) -> bool:
        return self.api.raw("GET", "/readyz") == b"ok"

    def _grant(self) -> None:
        for name, (role, group) in _BINDINGS.items():
            self.api.create(
                f"/apis/{_RBAC}/v1/clusterrolebindings",
                {
                    "metadata": {"name": name},
                    "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
                    "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": group}],
                },
            )

    def _approve(self) -> None:
        """Approve the serving certificates that nodes ask for, which the controller manager leaves to others."""
        path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
        while not self._stopping.is_set():
            try:
                for event in self.api.watch(path, timeout=2.0):
                    request = event["object"]
                    mine = request.get("spec", {}).get("signerName") == "kubernetes.io/kubelet-serving"
                    if event["type"] == "ADDED" and mine and not request["status"].get("conditions"):
                        condition = {"type": "Approved", "status": "True", "reason": "Harness", "message": "a node"}
                        request["status"]["conditions"] = [condition]
                        self.api.replace(f"{path}/{request['metadata']['name']}/approval", request)
            except (OSError, StatusError, KeyError):
                self._stopping.wait(POLL)  # the API server is away, or somebody was faster


def _kubeconfig(server: str, ca: Path, credentials: dict[str, str]) -> str:
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca.read_bytes()).decode()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "user", "user": credentials}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "context",
    }
    return json.dumps(config, indent=1) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
