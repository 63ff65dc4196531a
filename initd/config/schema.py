"""The configuration's types: one struct a TOML table, each field documented, so that the reference is made from them.

A field's Meta.extra["check"] is called with values that have the right type (see checks.py). No annotation is a string
here: msgspec would have to evaluate them, and walk.py reads them as they are.
"""

import tomllib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from initd.config import checks, kubeconfig, kubelet, walk
from initd.config.checks import MismatchError
from initd.config.sources import COMMAND_LINE, MAX_SIZE, ConfigError

HIDDEN = "(secret)"


def _checked(check: Callable[[Any], None], kind: str | None = None) -> Meta:
    """A value that `check` judges; kind is its "format" in JSON Schema."""
    return Meta(extra={"check": check}, extra_json_schema=None if kind is None else {"format": kind})


def doc(description: str, *examples: object) -> Meta:
    """What a field means, for the reference."""
    return Meta(description=description, examples=list(examples) or None)


Name = Annotated[str, _checked(checks.node_name)]
NodeAddress = Annotated[str, _checked(checks.node_address, "ip")]
LinkName = Annotated[str, _checked(checks.link_name)]
Mac = Annotated[str, _checked(checks.mac)]
Address = Annotated[str, _checked(checks.address, "ip")]
InterfaceAddress = Annotated[str, _checked(checks.interface_address, "cidr")]
Destination = Annotated[str, _checked(checks.destination, "cidr")]
Host = Annotated[str, _checked(checks.host, "hostname")]
Manifests = Annotated[dict[str, str], _checked(checks.file_names)]
KubeletFields = Annotated[dict[str, Any], _checked(kubelet.check_extra)]
Kubeconfig = Annotated[
    str, Meta(extra={"check": kubeconfig.parse, "secret": True}, extra_json_schema={"writeOnly": True})
]
Labels = Annotated[dict[str, str], _checked(checks.labels)]
Registry = Annotated[str, _checked(checks.registry)]
Mirror = Annotated[str, _checked(checks.mirror, "uri")]
Size = Annotated[str, _checked(checks.size)]
Metric = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Mtu = Annotated[int, Meta(ge=68, le=65535)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Timeout = Annotated[int, Meta(ge=0, le=600)]
Id = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]


class _Checked(Struct, frozen=True):
    def __post_init__(self) -> None:
        walk.check(self)


class Table(_Checked, frozen=True, forbid_unknown_fields=True):
    """What all tables are."""


class _Metadata(_Checked, frozen=True):
    name: Annotated[str, _checked(checks.subdomain)]
    namespace: Annotated[str, _checked(checks.subdomain)] = "default"


class _Spec(Struct):
    containers: Annotated[list[Any], Meta(min_length=1)]


class _Pod(Struct):
    """A manifest that is plainly a Pod; everything below spec is the kubelet's to judge."""

    apiVersion: Literal["v1"]  # noqa: N815 -- Kubernetes's names
    kind: Literal["Pod"]
    metadata: _Metadata
    spec: _Spec


def _pods(value: list[dict[str, Any]]) -> None:
    """Pods, no two of one namespace and name: the kubelet would run one of them and flap between both."""
    seen: dict[tuple[str, str], int] = {}
    for index, manifest in enumerate(value):
        try:
            checks.plain(manifest)
            metadata = msgspec.convert(manifest, _Pod).metadata
        except (MismatchError, msgspec.ValidationError) as error:
            mismatch = walk.explain(error, _Pod, manifest)
            mismatch.at = f"[{index}]{mismatch.at}"
            raise mismatch from None
        first = seen.setdefault((metadata.namespace, metadata.name), index)
        if first != index:
            found = f"{metadata.name!r}, which static_pods[{first}] has already"
            raise MismatchError("a name of its own", found, f"[{index}].metadata.name")


Pods = Annotated[list[dict[str, Any]], _checked(_pods)]


class NodeConfig(Table, frozen=True):
    """Who the node is. Decided once, before the kubelet's first start, and kept for this boot."""

    name: Annotated[Name | None, doc("Node and host name. Default: the lease's, else made of the machine id.")] = None
    address: Annotated[NodeAddress | None, doc("IP address. Default: the first that a link gets.", "192.0.2.10")] = None
    shutdown_seconds: Annotated[int, Meta(ge=10, le=3600, description="A shutdown or reboot may take at most.")] = 30
    rescue_seconds: Annotated[int, Meta(ge=0, le=86400, description="Until rescue reboots; 0: never.")] = 300


class RouteConfig(Table, frozen=True):
    """One static route of an interface."""

    to: Annotated[Destination, doc("Destination network.", "198.51.100.0/24")]
    via: Annotated[Address | None, doc("Gateway. Default: on link.", "192.0.2.1")] = None
    metric: Annotated[Metric | None, doc("Lower wins. Default: the kernel's.")] = None

    def __post_init__(self) -> None:
        walk.check(self)
        if self.via is not None and (":" in self.via) != (":" in self.to):
            raise MismatchError(f"a gateway of the same family as {self.to}", checks.describe(self.via), ".via")


class InterfaceConfig(Table, frozen=True):
    """One link, found by name or by hardware address."""

    name: Annotated[LinkName | None, doc("The link's name; either this or mac.", "eth0")] = None
    mac: Annotated[Mac | None, doc("The link's hardware address; either this or name.", "52:54:00:12:34:56")] = None
    dhcp: Annotated[bool, doc("Ask for an IPv4 address by DHCP.")] = False
    addresses: Annotated[tuple[InterfaceAddress, ...], doc("Static addresses.", ["192.0.2.10/24"])] = ()
    gateway: Annotated[Address | None, doc("Default route's gateway.", "192.0.2.1")] = None
    mtu: Annotated[Mtu | None, doc("Bytes. Default: the lease's, else the link's.")] = None
    routes: Annotated[tuple[RouteConfig, ...], doc("Static routes.")] = ()

    def __post_init__(self) -> None:
        walk.check(self)
        if (self.name is None) == (self.mac is None):
            raise MismatchError("exactly one of name and mac", "neither" if self.name is None else "both")


class NetworkConfig(Table, frozen=True):
    """Links, addresses and routes; what the network worker is given."""

    interfaces: Annotated[tuple[InterfaceConfig, ...], doc("Default: DHCP on every Ethernet link.")] = ()
    dns: Annotated[tuple[Address, ...], doc("Name servers. Default: the lease's.", ["192.0.2.53"])] = ()
    ntp: Annotated[tuple[Host, ...], doc("Time servers. Default: the lease's.", ["time.example"])] = ()
    timeout: Annotated[Timeout, doc("Seconds that the boot waits for an address before it goes on without one.")] = 30

    def __post_init__(self) -> None:
        walk.check(self)
        seen: set[str] = set()
        for index, interface in enumerate(self.interfaces):
            key = interface.name or interface.mac or ""
            if key in seen:
                raise MismatchError("one entry for each link", f"a second one for {key}", f".interfaces[{index}]")
            seen.add(key)


class KubeletConfig(Table, frozen=True):
    """The kubelet and the static pods that it runs."""

    static_pods: Annotated[Pods, doc("Pod manifests as tables (apiVersion, kind, metadata, spec).")] = []
    manifests: Annotated[Manifests, doc("Pod manifests as YAML or JSON text, by file name.")] = {}
    config: Annotated[
        KubeletFields,
        doc("KubeletConfiguration fields, merged over initd's; what initd sets itself is refused.", {"maxPods": 50}),
    ] = {}
    verbosity: Annotated[int, Meta(ge=0, le=10, description="The kubelet's log verbosity (-v).")] = 1


class ClusterConfig(Table, frozen=True):
    """The cluster that the node joins. Without this table the kubelet runs alone."""

    bootstrap_kubeconfig: Annotated[
        Kubeconfig,
        doc("Kubeconfig to join with, YAML or JSON: a secret, refused on the kernel command line and never shown."),
    ]
    labels: Annotated[
        Labels, doc("The node's labels when it joins for the first time.", {"topology.kubernetes.io/zone": "a"})
    ] = {}
    drain_seconds: Annotated[
        int, Meta(ge=0, le=86400, description="How much longer a shutdown or reboot may take for a drain; 0: no drain.")
    ] = 60
    max_unavailable: Annotated[
        int, Meta(ge=1, le=1000, description="Nodes that may be down at once in coordinated reboots.")
    ] = 1


class RegistryConfig(Table, frozen=True):
    """Mirrors of one image registry, asked before it."""

    host: Annotated[Registry, doc("The registry, as in images' names; _default: every other.", "registry.example:5000")]
    mirrors: Annotated[tuple[Mirror, ...], Meta(min_length=1), doc("URLs, asked in turn.", ["http://192.0.2.5:5000"])]


class ContainerdConfig(Table, frozen=True):
    """The container runtime. With this table containerd starts a little later: its configuration is written first."""

    log_level: Annotated[Literal["trace", "debug", "info", "warn", "error"], doc("Least severe to log.")] = "info"
    metrics_port: Annotated[Port | None, doc("Serve containerd's metrics on 127.0.0.1: /v1/metrics.", 1338)] = None


class VarConfig(Table, frozen=True):
    """The file system at /var: made afresh at each boot."""

    type: Annotated[Literal["tmpfs"], doc("Kind of file system.")] = "tmpfs"
    size: Annotated[Size, doc("Share of the memory, or bytes (Ki, Mi, Gi); kept back from pods.", "50%", "2Gi")] = "50%"
    inodes: Annotated[int, Meta(ge=10_000, le=100_000_000, description="Files and directories at most.")] = 1 << 20


class DisksConfig(Table, frozen=True):
    """File systems. A node with this table starts containerd only when /var is there."""

    var: Annotated[VarConfig, doc("The file system at /var.")] = VarConfig()


class RoleConfig(Table, frozen=True):
    """What a user or group may do by the API; root is always admin."""

    role: Annotated[Literal["reader", "operator", "admin"], doc("The role that is given.")]
    uid: Annotated[Id | None, doc("User id; either this or gid.", 1000)] = None
    gid: Annotated[Id | None, doc("Group id; either this or uid.", 1000)] = None

    def __post_init__(self) -> None:
        walk.check(self)
        if (self.uid is None) == (self.gid is None):
            raise MismatchError("exactly one of uid and gid", "neither" if self.uid is None else "both")


class ApiConfig(Table, frozen=True):
    """The node's API."""

    roles: Annotated[tuple[RoleConfig, ...], doc("Roles by user or group.")] = ()


class WatchdogConfig(Table, frozen=True):
    """The watchdog that resets the machine when PID 1 hangs."""

    seconds: Annotated[int, Meta(ge=0, le=3600, description="Without a sign of life until the reset; 0: none.")] = 60
    software: Annotated[bool, doc("Use the kernel's own (softdog) where there is no hardware.")] = False


class LogConfig(Table, frozen=True):
    """initd's own log."""

    console: Annotated[Literal["auto", "human", "json"], doc("On the console; auto: human on a terminal.")] = "auto"


class Config(Table, frozen=True):
    """The whole configuration; Config() is what a node without any has."""

    node: Annotated[NodeConfig, doc("Name and address of the node.")] = NodeConfig()
    network: Annotated[NetworkConfig, doc("Links, addresses and routes.")] = NetworkConfig()
    kubelet: Annotated[KubeletConfig, doc("The kubelet and its static pods.")] = KubeletConfig()
    cluster: Annotated[ClusterConfig | None, doc("The cluster to join.")] = None
    registries: Annotated[tuple[RegistryConfig, ...], doc("Mirrors of image registries.")] = ()
    containerd: Annotated[ContainerdConfig, doc("The container runtime.")] = ContainerdConfig()
    disks: Annotated[DisksConfig, doc("File systems.")] = DisksConfig()
    api: Annotated[ApiConfig, doc("The node's API.")] = ApiConfig()
    watchdog: Annotated[WatchdogConfig, doc("Resets the machine when PID 1 hangs.")] = WatchdogConfig()
    log: Annotated[LogConfig, doc("initd's own log.")] = LogConfig()


def parse(text: str, source: str) -> Config:
    """Read the TOML text that source (a name from sources.py, or a file's) gave.

    Raises ConfigError, and nothing else, for whatever the text holds: its message names the source, the key or the line
    and column, what was found and what was expected.
    """
    if len(text) > MAX_SIZE:
        raise ConfigError(source, f"found {len(text)} characters, expected at most {MAX_SIZE}")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(source, "not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or int()'s own limit on digits
        raise _error(source, f"not valid TOML: {error}") from None
    for path, _ in _secrets(table) if source == COMMAND_LINE else ():
        raise ConfigError(source, "found a secret, expected none where every pod can read it", ".".join(path))
    return convert(table, source)


def convert(table: dict[str, Any], source: str) -> Config:
    """Make the configuration of a parsed TOML table; raises ConfigError."""
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        mismatch = walk.explain(error, Config, table)
        raise _error(source, str(mismatch), mismatch.at.lstrip(".")) from None


def _error(source: str, problem: str, key: str = "") -> ConfigError:
    """What readers of the API may see: a key may be a token, mistyped."""
    return ConfigError(source, kubeconfig.TOKEN.sub(HIDDEN, problem), kubeconfig.TOKEN.sub(HIDDEN, key))


def _secrets(table: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The path of each secret that a configuration has, and the table that holds it."""
    for path in walk.secrets(Config):
        inner: Any = table
        for key in path[:-1]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and inner.get(path[-1]) is not None:
            yield path, inner


def shown(config: Config) -> dict[str, Any]:
    """The configuration as plain data, with HIDDEN for each secret."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    for path, inner in _secrets(values):
        inner[path[-1]] = HIDDEN
    return values


def shown_text(text: str) -> str:
    """The text of a configuration that was accepted, with HIDDEN for each secret, or for all where that is not sure.

    It is not where a comment may hold one. In a text that was refused anything may be one.
    """
    for path, inner in _secrets(tomllib.loads(text)):
        for written in (inner[path[-1]], msgspec.json.encode(inner[path[-1]]).decode()[1:-1]):
            text = text.replace(written, HIDDEN)
    try:
        hidden = [inner[path[-1]] == HIDDEN for path, inner in _secrets(tomllib.loads(text))]
    except ValueError:
        return HIDDEN
    named = sum(text.count(path[-1]) for path in walk.secrets(Config))
    return text if all(hidden) and named == len(hidden) and not kubeconfig.TOKEN.search(text) else HIDDEN


def json_schema() -> dict[str, Any]:
    """The configuration's JSON Schema (draft 2020-12), with descriptions, defaults and examples."""
    return msgspec.json.schema(Config)
