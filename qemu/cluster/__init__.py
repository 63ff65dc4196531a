"""A cluster on one host: a control plane on loopback and nodes in QEMU that join it.

Each node has two network cards: eth0 is QEMU's user network, by which it reaches the host (the API server, the registry
and whatever else listens on loopback there); eth1 is a segment that the nodes share, with the addresses that Kubernetes
knows them by.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Self

from qemu import claims, disks, vms
from qemu.cluster import pods
from qemu.cluster.controlplane import HOST, LOOPBACK, ControlPlane
from qemu.errors import HarnessError, MachineStoppedError
from qemu.machine import Machine, checked_name, made_registry
from qemu.net import Network, Segment
from qemu.registry import Registry
from qemu.toml import toml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from qemu.image import Bootable

KUBELET_PORT = 10250
NODE_NETWORK = "10.100.0"
FIRST_STATION = 11
MEMORY = 3072  # MiB of a node: half of it is /var
JOIN_SECONDS = 300.0


class Cluster:
    """A control plane, and the nodes that `add` starts. As a context manager it is started, and killed at the end.

    name: unique among the user's clusters; its files go by it. image: what the nodes boot, by default what rootfs
    builds. certificate_seconds: how long the certificates live that are signed for nodes. images: a folder of more
    archives that its registry serves.
    """

    def __init__(
        self,
        name: str = "cluster",
        image: Bootable | None = None,
        certificate_seconds: int = 86400,
        images: Path | None = None,
    ) -> None:
        self.name = checked_name(name)
        self.folder = _clusters() / name
        self.machines: dict[str, Machine] = {}
        self._image = image
        self._stack = contextlib.ExitStack()
        self._certificate_seconds = certificate_seconds
        self._images = [images] if images else []
        self.control_plane: ControlPlane
        self.registry: Registry

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start registry and control plane, and ask for the cluster's own pods; raises HarnessError."""
        programs, images = _built()
        try:
            egress = self._claim()
            self.registry = Registry(images, *self._images)
            self._stack.callback(self.registry.close)
            self.control_plane = ControlPlane(programs, self.folder, egress, self._dial, self._certificate_seconds)
            self._stack.callback(self.control_plane.stop)
            self.control_plane.start()
            self.apply(*pods.network(self.control_plane.port))
        except BaseException:
            self.kill()
            raise

    def _claim(self) -> Path:
        """Take the name, and make the folder afresh; return where the egress proxy's socket goes."""
        made_registry()
        disks.make_folder(_clusters(), exist_ok=True)
        claims.sweep(_clusters(), _remove)
        if not claims.claim(_clusters(), self.name, self._stack):
            hint = "use another name (--name), or end that one: Ctrl-C where it was started"
            raise HarnessError(f"a cluster named {self.name} runs already", hint)
        _remove(self.name)
        self._stack.callback(_remove, self.name)
        disks.make_folder(self.folder)
        return _egress(self.name)

    def kill(self) -> None:
        """End everything at once, and remove its files."""
        for machine in self.machines.values():
            machine.kill()
        self._stack.close()

    # Its nodes.

    def config(
        self,
        name: str,
        *,
        token: str | None = None,
        kubeconfig: str | None = None,
        static_pods: Sequence[Mapping[str, Any]] = (),
        cluster: Mapping[str, Any] | None = None,
        extra: str = "",
        **kubelet: object,
    ) -> str:
        """Return the configuration of the node `name`, which ends in its number: node-1 has the address 10.100.0.11.

        token: by which it joins, by default a new one; or the whole kubeconfig. cluster: more of that table. kubelet:
        fields of KubeletConfiguration. extra: TOML text that follows.
        """
        if kubeconfig is None:
            plane = self.control_plane
            kubeconfig = plane.bootstrap_kubeconfig(token or plane.bootstrap_token())
        interfaces = [{"name": "eth0", "dhcp": True}, {"name": "eth1", "addresses": [f"{self.address(name)}/24"]}]
        tables: dict[str, Any] = {
            "node": {"name": name, "address": self.address(name)},
            "cluster": {"bootstrap_kubeconfig": kubeconfig, **(cluster or {})},
            "network": {"interfaces": interfaces},
            "kubelet": {"config": kubelet, "static_pods": list(static_pods)},
            "registries": [{"host": "_default", "mirrors": [f"http://{HOST}:{self.registry.port}"]}],
        }
        return "".join(f"{key} = {toml(value)}\n" for key, value in tables.items()) + extra

    @staticmethod
    def address(name: str) -> str:
        """The IP address of the node `name`."""
        return f"{NODE_NETWORK}.{_station(name)}"

    def machine(self, name: str, config: str | None = None, forward: tuple[int, ...] = (), **options: Any) -> Machine:
        """Make the machine of a node; `config` by default what `config(name)` gives, options are Machine's.

        forward: ports of the node that the host reaches, besides the kubelet's.
        """
        networks = (Network(forward=(KUBELET_PORT, *forward)), Segment(self.control_plane.port, _station(name)))
        options = {"memory": MEMORY, "networks": networks, "image": self._image, **options}
        machine = Machine(f"{self.name}-{name}", config=config or self.config(name), **options)
        self.machines[name] = machine
        return machine

    def join(self, *names: str) -> None:
        """Start nodes, and return when the cluster says that they are Ready; raises HarnessError."""
        for name in names:
            self.machine(name).start()
        for name in names:
            self.wait_ready(name)

    def wait_ready(self, name: str, timeout: float = JOIN_SECONDS) -> None:
        """Wait until the cluster says that a node is Ready; raises HarnessError with what it says instead, and at once
        if the node's machine is off.
        """
        machine = self.machines[name]

        def ready() -> bool:
            if not machine.running:
                raise MachineStoppedError(f"node {name} Ready: machine {machine.name} is off")
            return self.ready(name)

        try:
            self.control_plane.wait(f"node {name} Ready", ready, timeout)
        except HarnessError as error:
            error.detail = f"{error.detail}\n--- console of {name} ---\n{machine.console_tail()}"
            raise

    def ready(self, name: str) -> bool:
        """Whether the cluster says that a node is Ready; raises StatusError if there is no such node."""
        conditions = self.control_plane.api.get(f"/api/v1/nodes/{name}")["status"].get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    # Its API.

    def kubectl(self, *arguments: str, text: str | None = None, timeout: float = 120.0) -> str:
        """Return what kubectl prints; `text` is its input. Raises HarnessError with its error."""
        command = [str(self.control_plane.programs / "kubectl"), f"--kubeconfig={self.control_plane.kubeconfig}"]
        try:
            done = subprocess.run(
                [*command, *arguments], input=text, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise HarnessError(f"kubectl {' '.join(arguments)}: not within {timeout:g} s") from None
        if done.returncode:
            raise HarnessError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects of the cluster; raises HarnessError."""
        items: Sequence[Mapping[str, Any]] = objects
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def _dial(self, host: str, port: int) -> socket.socket:
        for name, machine in list(self.machines.items()):  # the egress proxy's threads ask while others start nodes
            if host == self.address(name) and machine.running:
                try:
                    return socket.create_connection((LOOPBACK, machine.port(port)), timeout=30.0)
                except HarnessError as error:
                    raise OSError(str(error)) from error
        raise OSError(f"no node at {host} is running")


def _clusters() -> Path:
    """Where clusters have their folders: in the cache, since a store is large."""
    return disks.cache() / "clusters"


def _egress(name: str) -> Path:
    """The socket of a cluster's egress proxy, where paths are short enough for one. No machine's name has that dot."""
    return vms.directory() / f".{name}.egress"


def _remove(name: str) -> None:
    shutil.rmtree(_clusters() / name, ignore_errors=True)
    _egress(name).unlink(missing_ok=True)


def _station(name: str) -> int:
    number = name.rpartition("-")[2]
    if not number.isdecimal() or not 1 <= int(number) <= 200:
        raise HarnessError(f"found node name {name!r}, expected one that ends in a number, as node-1")
    return FIRST_STATION - 1 + int(number)


def _built() -> tuple[Path, Path]:
    """The folders of the control plane's programs and of the images for its pods, built if need be."""
    try:
        from rootfs import build  # noqa: PLC0415 only a clone has it
        from rootfs.progress import BuildError, Progress  # noqa: PLC0415
    except ModuleNotFoundError:
        raise HarnessError("no control plane is installed", "use a clone, which builds one") from None
    try:
        made = build.cluster(Progress())
    except BuildError as error:
        raise HarnessError(error.message, error.hint) from error
    return made.programs, made.images
