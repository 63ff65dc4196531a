"""The node's services, as data: exactly two, containerd and the kubelet.

The supervisor takes what it does with them from here. PID 1 reads this before containerd's exec, so it imports nothing
that takes time. Limits of their cgroups stand in the tree (cgroups.py).
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from initd.config.schema import Config

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CONTAINERD_DEFAULT_CONFIG = "/usr/share/initd/containerd.toml"
CONTAINERD_CONFIG = "/run/initd/containerd/config.toml"
CERTS = "/run/initd/containerd/certs.d"
KUBELET_CONFIG = "/run/initd/kubelet/config.yaml"
KUBELET_BOOTSTRAP = "/run/initd/kubelet/bootstrap.kubeconfig"
KUBELET_AUTHORITY = "/run/initd/kubelet/ca.crt"
KUBELET_KUBECONFIG = "/var/lib/kubelet/kubeconfig"  # the kubelet writes it
KUBELET_PKI = "/var/lib/kubelet/pki"
STATIC_PODS = "/etc/kubernetes/manifests"
HEALTHZ_ADDRESS, HEALTHZ_PORT = "127.0.0.1", 10248

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin"}  # where they look up shim, runc, mount, nft


class HttpProbe(NamedTuple):
    """Alive if a GET is answered with status 200."""

    host: str
    port: int
    path: str


class Http2SocketProbe(NamedTuple):
    """Alive if an HTTP/2 server answers on this Unix socket: the kernel accepts a connection for a hung process too."""

    path: str


class ServiceSpec(NamedTuple):
    """How to run one service or worker.

    cgroup is a path below the cgroup file system's root, cgroup_settings go into its files at each start. rlimits maps
    resource.RLIMIT_* to soft and hard limits, resource.RLIM_INFINITY among them. oom_score_adj None leaves PID 1's.
    capabilities are those that it and what it starts may have (numbers of capabilities(7)); sealed: see native.Spawn.
    notify: it sends READY=1 (sd_notify), within start_seconds. watchdog_seconds is its WATCHDOG_USEC, 0 for a service
    that never sends WATCHDOG=1. stop_seconds lie between SIGTERM and SIGKILL; main_only sends both to the main process
    instead of killing the whole cgroup, so that what it started survives it. needs names services; while one of them is
    not there, an end of this one is no failure.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    cgroup: str
    cgroup_settings: dict[str, int | str] = {}  # noqa: RUF012 -- nobody writes to a specification
    rlimits: Mapping[int, tuple[int, int]] = {}
    oom_score_adj: int | None = None
    capabilities: frozenset[int] | None = None
    sealed: bool = False
    notify: bool = False
    watchdog_seconds: float = 0.0
    start_seconds: float = 60.0
    stop_seconds: float = 10.0
    main_only: bool = False
    needs: tuple[str, ...] = ()
    liveness: HttpProbe | Http2SocketProbe | None = None


# Pods inherit containerd's limits. A core file would land on a tmpfs and push pods out of memory.
RLIMITS: Mapping[int, tuple[int, int]] = {
    resource.RLIMIT_NOFILE: (1 << 20, 1 << 20),
    resource.RLIMIT_NPROC: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    resource.RLIMIT_CORE: (0, 0),
}
# capabilities(7)
NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME = 10, 12, 13, 16, 17, 22, 25
AUDIT_CONTROL, MAC_OVERRIDE, MAC_ADMIN, LAST_CAPABILITY = 30, 32, 33, 40
NO_REBOOT = frozenset(range(LAST_CAPABILITY + 1)) - {SYS_BOOT}  # nor kexec, which would end verity


def containerd_argv(config: str = CONTAINERD_DEFAULT_CONFIG) -> tuple[str, ...]:
    """Return containerd's command line for the image's configuration file, or for one rendered at boot."""
    return ("/usr/bin/containerd", "--config", config)


def kubelet_argv(name: str, address: str | None, config: Config) -> tuple[str, ...]:
    """Return the kubelet's command line for the decided node name and IP; without an IP it picks one itself."""
    argv = ["/usr/bin/kubelet", f"--config={KUBELET_CONFIG}", f"--hostname-override={name}"]
    argv.append(f"--runtime-cgroups=/{CONTAINERD.cgroup}")  # for its statistics; no field of its configuration says so
    if address is not None:
        argv.append(f"--node-ip={address}")
    if config.cluster is not None:
        files = {"bootstrap-kubeconfig": KUBELET_BOOTSTRAP, "kubeconfig": KUBELET_KUBECONFIG, "cert-dir": KUBELET_PKI}
        argv += [f"--{option}={path}" for option, path in files.items()]
        argv += [f"--node-labels={key}={value}" for key, value in config.cluster.labels.items()]
    return (*argv, f"-v={config.kubelet.verbosity}")


CONTAINERD = ServiceSpec(
    name="containerd",
    argv=containerd_argv(),
    environment=ENVIRONMENT,
    cgroup="runtime",
    rlimits=RLIMITS,
    oom_score_adj=-999,
    capabilities=NO_REBOOT,  # a privileged pod has the rest
    notify=True,
    main_only=True,  # pods must survive its restart
    liveness=Http2SocketProbe(CONTAINERD_SOCKET),
)
KUBELET = ServiceSpec(
    name="kubelet",
    argv=("/usr/bin/kubelet",),  # the rest is decided late
    environment=ENVIRONMENT,
    cgroup="kubelet",
    rlimits=RLIMITS,
    oom_score_adj=-450,
    capabilities=NO_REBOOT - {SYS_MODULE, SYS_RAWIO, SYS_TIME, AUDIT_CONTROL, MAC_OVERRIDE, MAC_ADMIN},
    sealed=True,
    notify=True,
    watchdog_seconds=60.0,  # a sign of life each 30 s: emulated machines are slow, and few wake-ups are cheap
    start_seconds=120.0,
    needs=("containerd",),
    liveness=HttpProbe(HEALTHZ_ADDRESS, HEALTHZ_PORT, "/healthz"),
)
SERVICES = (CONTAINERD, KUBELET)

MIB = 1 << 20
# memory.max in bytes, and capabilities.
WORKERS: Mapping[str, tuple[int, frozenset[int]]] = {
    "network": (96 * MIB, frozenset({NET_BIND_SERVICE, NET_ADMIN, NET_RAW})),
    "devices": (64 * MIB, frozenset({NET_ADMIN, SYS_MODULE})),  # a receive buffer over the bound
    "containers": (128 * MIB, frozenset()),
    "cluster": (96 * MIB, frozenset()),
}


def worker(name: str) -> ServiceSpec:
    """The specification of a worker, with a leaf cgroup of its own; without argv, it is a fork of PID 1."""
    memory, capabilities = WORKERS[name]
    return ServiceSpec(
        name,
        argv=(),
        environment={},
        cgroup=f"initd/{name}",
        cgroup_settings={"memory.max": memory},
        capabilities=capabilities,
        sealed=SYS_MODULE not in capabilities,
    )
