"""The configuration's types: one struct a TOML table, each field documented, so that the reference is made from them.

A field's Meta.extra["check"] is called with values that have the right type (see checks.py); "x-initd-secret" in its
extra_json_schema marks what must not stand on the kernel command line. No annotation is a string here: msgspec would
have to evaluate them, and walk.py reads them as they are.
"""

import tomllib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from initd.config import checks, kubelet, walk
from initd.config.errors import ConfigError, MismatchError
from initd.config.sources import COMMAND_LINE, MAX_SIZE

Address = Annotated[str, Meta(extra={"check": checks.address}, extra_json_schema={"format": "ip"})]
InterfaceAddress = Annotated[str, Meta(extra={"check": checks.interface_address}, extra_json_schema={"format": "cidr"})]
Destination = Annotated[str, Meta(extra={"check": checks.destination}, extra_json_schema={"format": "cidr"})]
Host = Annotated[str, Meta(extra={"check": checks.host}, extra_json_schema={"format": "hostname"})]
Metric = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Mtu = Annotated[int, Meta(ge=68, le=65535)]
Id = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the node is. Decided once, before the kubelet's first start, and kept for this boot."""

    name: Annotated[
        Annotated[str, Meta(extra={"check": checks.node_name})] | None,
        Meta(
            description="Node and host name. Default: the DHCP lease's, else one made of the machine id.",
            examples=["node-1"],
        ),
    ] = None
    address: Annotated[
        Annotated[str, Meta(extra={"check": checks.node_address}, extra_json_schema={"format": "ip"})] | None,
        Meta(
            description="The node's IP address. Default: the first address that a link gets.", examples=["192.0.2.10"]
        ),
    ] = None


class RouteConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One static route of an interface."""

    to: Annotated[Destination, Meta(description="Destination network.", examples=["198.51.100.0/24"])]
    via: Annotated[Address | None, Meta(description="Gateway. Default: on link.", examples=["192.0.2.1"])] = None
    metric: Annotated[Metric | None, Meta(description="Lower wins. Default: the kernel's.")] = None

    def __post_init__(self) -> None:
        if self.via is not None and (":" in self.via) != (":" in self.to):
            raise MismatchError(f"a gateway of the same family as {self.to}", checks.describe(self.via), ".via")


class InterfaceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One link, found by name or by hardware address."""

    name: Annotated[
        Annotated[str, Meta(extra={"check": checks.link_name})] | None,
        Meta(description="The link's name; either this or mac.", examples=["eth0"]),
    ] = None
    mac: Annotated[
        Annotated[str, Meta(extra={"check": checks.mac})] | None,
        Meta(description="The link's hardware address; either this or name.", examples=["52:54:00:12:34:56"]),
    ] = None
    dhcp: Annotated[bool, Meta(description="Ask for an IPv4 address by DHCP.")] = False
    addresses: Annotated[
        tuple[InterfaceAddress, ...], Meta(description="Static addresses.", examples=[["192.0.2.10/24"]])
    ] = ()
    gateway: Annotated[Address | None, Meta(description="Default route's gateway.", examples=["192.0.2.1"])] = None
    mtu: Annotated[Mtu | None, Meta(description="Bytes. Default: the lease's, else the link's.")] = None
    routes: Annotated[tuple[RouteConfig, ...], Meta(description="Static routes.")] = ()

    def __post_init__(self) -> None:
        if (self.name is None) == (self.mac is None):
            raise MismatchError("exactly one of name and mac", "neither" if self.name is None else "both")


class NetworkConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Links, addresses and routes; what the network worker is given."""

    interfaces: Annotated[
        tuple[InterfaceConfig, ...], Meta(description="Default: DHCP on every Ethernet link that is there.")
    ] = ()
    dns: Annotated[
        tuple[Address, ...], Meta(description="Name servers. Default: the lease's.", examples=[["192.0.2.53"]])
    ] = ()
    ntp: Annotated[
        tuple[Host, ...], Meta(description="Time servers. Default: the lease's.", examples=[["time.example"]])
    ] = ()
    timeout: Annotated[
        int, Meta(ge=0, le=600, description="Seconds that the boot waits for an address before it goes on without one.")
    ] = 30

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for index, interface in enumerate(self.interfaces):
            key = interface.name or interface.mac or ""
            if key in seen:
                raise MismatchError("one entry for each link", f"a second one for {key}", f".interfaces[{index}]")
            seen.add(key)


class KubeletConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The kubelet and the static pods that it runs."""

    static_pods: Annotated[
        list[dict[str, Any]],
        Meta(description="Pod manifests as tables (apiVersion, kind, metadata, spec).", extra={"check": checks.pods}),
    ] = []
    manifests: Annotated[
        dict[str, str],
        Meta(description="Pod manifests as YAML or JSON text, by file name.", extra={"check": checks.file_names}),
    ] = {}
    config: Annotated[
        dict[str, Any],
        Meta(
            description="KubeletConfiguration fields, merged over initd's; those that initd needs itself are refused.",
            examples=[{"maxPods": 50}],
            extra={"check": kubelet.check_extra},
        ),
    ] = {}
    verbosity: Annotated[int, Meta(ge=0, le=10, description="The kubelet's log verbosity (-v).")] = 1


class ContainerdConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The container runtime. With this table containerd starts a little later: its configuration is written first."""

    log_level: Annotated[
        Literal["trace", "debug", "info", "warn", "error"], Meta(description="Least severe messages to log.")
    ] = "info"


class VarConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file system at /var: made afresh at each boot."""

    type: Annotated[Literal["tmpfs"], Meta(description="Kind of file system.")] = "tmpfs"
    size: Annotated[
        str,
        Meta(
            description="Share of the memory, or bytes with the suffix Ki, Mi or Gi; kept back from pods.",
            examples=["50%", "2Gi"],
            extra={"check": checks.size},
        ),
    ] = "50%"
    inodes: Annotated[int, Meta(ge=10_000, le=100_000_000, description="Files and directories at most.")] = 1 << 20


class DisksConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """File systems. A node with this table starts containerd only when /var is there."""

    var: Annotated[VarConfig, Meta(description="The file system at /var.")] = VarConfig()


class RoleConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user or group may do by the API; root is always admin."""

    role: Annotated[Literal["reader", "operator", "admin"], Meta(description="The role that is given.")]
    uid: Annotated[Id | None, Meta(description="User id; either this or gid.", examples=[1000])] = None
    gid: Annotated[Id | None, Meta(description="Group id; either this or uid.", examples=[1000])] = None

    def __post_init__(self) -> None:
        if (self.uid is None) == (self.gid is None):
            raise MismatchError("exactly one of uid and gid", "neither" if self.uid is None else "both")


class ApiConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node's API."""

    roles: Annotated[tuple[RoleConfig, ...], Meta(description="Roles by user or group.")] = ()


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """initd's own log."""

    console: Annotated[
        Literal["auto", "human", "json"], Meta(description="Form on the console; auto is human on a terminal.")
    ] = "auto"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration; Config() is what a node without any has."""

    node: Annotated[NodeConfig, Meta(description="Name and address of the node.")] = NodeConfig()
    network: Annotated[NetworkConfig, Meta(description="Links, addresses and routes.")] = NetworkConfig()
    kubelet: Annotated[KubeletConfig, Meta(description="The kubelet and its static pods.")] = KubeletConfig()
    containerd: Annotated[ContainerdConfig, Meta(description="The container runtime.")] = ContainerdConfig()
    disks: Annotated[DisksConfig, Meta(description="File systems.")] = DisksConfig()
    api: Annotated[ApiConfig, Meta(description="The node's API.")] = ApiConfig()
    log: Annotated[LogConfig, Meta(description="initd's own log.")] = LogConfig()


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
        raise ConfigError(source, f"not valid TOML: {error}") from None
    return walk.convert(table, Config, source, secrets=source != COMMAND_LINE)


def json_schema() -> dict[str, Any]:
    """The configuration's JSON Schema (draft 2020-12), with descriptions, defaults and examples."""
    return msgspec.json.schema(Config)
