"""The configuration's schema: what it takes, and what it says about what it does not take."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins

from initd import boot, mounts
from initd.api.methods.node import config
from initd.api.registry import Call, Peer, Role
from initd.config import checks, sources
from initd.config.checks import MismatchError
from initd.config.schema import HIDDEN, Config, convert, json_schema, parse, shown, shown_text
from initd.config.sources import ConfigError
from initd.node import Node
from qemu.toml import toml
from tests.unit.cluster_support import TOKEN, kubeconfig

POD = """
[[kubelet.static_pods]]
apiVersion = "v1"
kind = "Pod"
metadata.name = "web"
[[kubelet.static_pods.spec.containers]]
name = "web"
image = "initd.local/web:1"
"""
CLUSTER = f"[cluster]\nbootstrap_kubeconfig = '''\n{kubeconfig()}'''"
EVERYTHING = (
    POD
    + """
[node]
name = "node-1"
address = "192.0.2.10"
[network]
dns = ["192.0.2.53", "2001:db8::53"]
ntp = ["time.example", "192.0.2.123"]
timeout = 5
[[network.interfaces]]
name = "eth0"
addresses = ["192.0.2.10/24", "2001:db8::10/64"]
gateway = "192.0.2.1"
mtu = 1400
routes = [{ to = "198.51.100.0/24", via = "192.0.2.2", metric = 10 }, { to = "::/0" }]
[[network.interfaces]]
mac = "52:54:00:12:34:56"
dhcp = true
[kubelet]
verbosity = 4
config = { maxPods = 20, evictionHard = { "memory.available" = "50Mi" } }
manifests = { dns = "kind: Pod" }
[containerd]
log_level = "debug"
[disks.var]
size = "2Gi"
inodes = 50000
[api]
roles = [{ uid = 1000, role = "reader" }, { gid = 0, role = "admin" }]
[log]
console = "json"
"""
)


def test_everything_that_the_schema_has_is_read() -> None:
    config = parse(EVERYTHING, "x")
    assert (config.node.name, config.node.address) == ("node-1", "192.0.2.10")
    first, second = config.network.interfaces
    assert (first.name, first.dhcp, first.mtu, first.gateway) == ("eth0", False, 1400, "192.0.2.1")
    assert [(route.to, route.via, route.metric) for route in first.routes] == [
        ("198.51.100.0/24", "192.0.2.2", 10),
        ("::/0", None, None),
    ]
    assert (second.mac, second.dhcp) == ("52:54:00:12:34:56", True)
    assert config.kubelet.static_pods[0]["spec"]["containers"][0]["image"] == "initd.local/web:1"
    assert config.api.roles[1].role == "admin"
    assert config.disks.var.inodes == 50000


def test_an_empty_text_is_the_defaults() -> None:
    config = parse("", "x")
    assert config == Config()
    assert config.network.interfaces == ()
    assert config.network.timeout == 30


def test_the_default_of_var_is_what_is_mounted_without_a_table() -> None:
    """Both are written down: containerd starts before this schema is imported. They must not drift apart."""
    var = Config().disks.var
    options = dict(option.split("=") for option in mounts.VAR_OPTIONS.split(","))
    assert options["size"] == var.size
    assert options["nr_inodes"] == f"{var.inodes >> 20}m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[node]\nadress = 'x'", "node.adress: found an unknown key, expected address"),
        ("[nodes]", "nodes: found an unknown key, expected node"),
        (
            "[zz]",
            (
                "zz: found an unknown key, "
                "expected one of api, cluster, containerd, disks, kubelet, log, network, node, registries, watchdog"
            ),
        ),
        ("[node]\nname = 5", "node.name: found 5, expected a string"),
        ("node = []", "node: found an empty array, expected a table"),
        ("[network]\ntimeout = 'soon'", "network.timeout: found 'soon', expected an integer"),
        ("[network]\ntimeout = true", "network.timeout: found true, expected an integer"),
        ("[network]\ntimeout = -1", "network.timeout: found -1, expected an integer >= 0"),
        ("[network]\ndns = ['10.0.0']", "network.dns[0]: found '10.0.0', expected an IPv4 or IPv6 address"),
        ("[network]\nntp = ['300.1.1.1']", "network.ntp[0]: found '300.1.1.1', expected an address or a host name"),
        (
            "[node]\nname = 'Node_1'",
            "node.name: found 'Node_1', expected lower-case letters, digits, '-' and '.', at most 63 characters",
        ),
        (
            "[node]\naddress = '127.0.0.1'",
            "node.address: found '127.0.0.1', expected an IPv4 or IPv6 address that other hosts can reach",
        ),
        (
            "[[network.interfaces]]\nname = 'eth0'\naddresses = ['192.0.2.10']",
            (
                "network.interfaces[0].addresses[0]: found '192.0.2.10', "
                "expected an address with its prefix length, such as 192.0.2.10/24"
            ),
        ),
        (
            "[[network.interfaces]]\nname = 'a name'",
            "network.interfaces[0].name: found 'a name', expected a link name such as eth0, at most 15 characters",
        ),
        (
            "[[network.interfaces]]\nmac = '52:54'",
            "network.interfaces[0].mac: found '52:54', expected a lower-case MAC address such as 52:54:00:12:34:56",
        ),
        (
            "[[network.interfaces]]\ndhcp = true",
            "network.interfaces[0]: found neither, expected exactly one of name and mac",
        ),
        (
            "[[network.interfaces]]\nname = 'eth0'\n[[network.interfaces]]\nname = 'eth0'",
            "network.interfaces[1]: found a second one for eth0, expected one entry for each link",
        ),
        (
            "[[network.interfaces]]\nname = 'eth0'\nroutes = [{ to = '192.0.2.1/24' }]",
            (
                "network.interfaces[0].routes[0].to: found '192.0.2.1/24', "
                "expected a network such as 198.51.100.0/24, with no host bits set"
            ),
        ),
        (
            "[[network.interfaces]]\nname = 'eth0'\nroutes = [{ to = '::/0', via = '192.0.2.1' }]",
            "network.interfaces[0].routes[0].via: found '192.0.2.1', expected a gateway of the same family as ::/0",
        ),
        (
            "[[network.interfaces]]\nname = 'eth0'\nroutes = [{ via = '192.0.2.1' }]",
            "network.interfaces[0].routes[0].to: found nothing, expected a value",
        ),
        (
            POD + POD,
            (
                "kubelet.static_pods[1].metadata.name: found 'web', which static_pods[0] has already, "
                "expected a name of its own"
            ),
        ),
        (POD.replace('"Pod"', '"Job"'), "kubelet.static_pods[0].kind: found 'Job', expected 'Pod'"),
        (POD.replace('kind = "Pod"', ""), "kubelet.static_pods[0].kind: found nothing, expected a value"),
        (
            POD.replace('"web"', '"Web"', 1),
            "kubelet.static_pods[0].metadata.name: found 'Web', expected an RFC 1123 subdomain",
        ),
        (
            POD.replace('metadata.name = "web"', "metadata.labels = {}"),
            "kubelet.static_pods[0].metadata.name: found nothing, expected a value",
        ),
        (
            POD.partition("[[kubelet.static_pods.spec")[0],
            "kubelet.static_pods[0].spec: found nothing, expected a value",
        ),
        (
            POD.partition("[[kubelet.static_pods.spec")[0] + "spec.containers = []",
            "kubelet.static_pods[0].spec.containers: found an empty array, expected an array of length >= 1",
        ),
        (
            POD + "since = 1979-05-27",
            (
                "kubelet.static_pods[0].spec.containers[0].since: found a date or time (1979-05-27), "
                "expected a string, number, boolean, array or table"
            ),
        ),
        (
            POD + "cpu = nan",
            "kubelet.static_pods[0].spec.containers[0].cpu: found nan, expected a finite number",
        ),
        ("[kubelet.manifests]\nx = 3", "kubelet.manifests.x: found 3, expected a string"),
        ("[kubelet.manifests]\n'../x' = ''", "kubelet.manifests: found '../x', expected an RFC 1123 subdomain as name"),
        ("[kubelet.config]\nmaxpods = 3", "kubelet.config.maxpods: found an unknown key, expected maxPods"),
        (
            "[kubelet.config]\ncgroupDriver = 'systemd'",
            "kubelet.config.cgroupDriver: found 'cgroupDriver', expected a field that initd does not set itself",
        ),
        (
            "[containerd]\nlog_level = 'loud'",
            "containerd.log_level: found 'loud', expected 'trace' or 'debug' or 'info' or 'warn' or 'error'",
        ),
        (
            "[disks.var]\nsize = '2GB'",
            (
                "disks.var.size: found '2GB', "
                "expected a share of the memory from 5% to 90%, or at least 64Mi (suffixes Ki, Mi, Gi)"
            ),
        ),
        (
            "[kubelet.manifests]\n['x - at `$.kubelet.manifests[...]']",
            (
                "'x - at `$.kubelet.manifests[...]': found an unknown key, "
                "expected one of api, cluster, containerd, disks, kubelet, log, network, node, registries, watchdog"
            ),
        ),
        ("[[api.roles]]\nuid = 1", "api.roles[0].role: found nothing, expected a value"),
        ("[[api.roles]]\nrole = 'reader'", "api.roles[0]: found neither, expected exactly one of uid and gid"),
        (
            "[[api.roles]]\nrole = 'root'\nuid = 1",
            "api.roles[0].role: found 'root', expected 'reader' or 'operator' or 'admin'",
        ),
        (f"[cluster]\nbootstrap_kubeconfig = '{TOKEN}'", "cluster.bootstrap_kubeconfig: found text, expected a table"),
        (f"{CLUSTER}\nlabels = {{ a = 1 }}", "cluster.labels.a: found 1, expected a string"),
        (f"{CLUSTER}\nmax_unavailable = 0", "cluster.max_unavailable: found 0, expected an integer >= 1"),
        (
            "[[registries]]\nhost = 'a/b'\nmirrors = ['http://x']",
            "registries[0].host: found 'a/b', expected a registry such as registry.example:5000, or _default",
        ),
        (
            "[[registries]]\nhost = 'a'\nmirrors = ['x']",
            "registries[0].mirrors[0]: found 'x', expected a URL, http:// or https://",
        ),
        (
            "[[registries]]\nhost = 'a'\nmirrors = []",
            "registries[0].mirrors: found an empty array, expected an array of length >= 1",
        ),
        ("[node\n", "not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 6)"),
        ("a = " + "[" * 50_000, "not valid TOML: nested too deeply"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "test source")
    assert str(caught.value) == f"test source: {message}"


def test_the_error_has_its_parts() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[node]\nname = 5", "test source")
    assert (caught.value.source, caught.value.key) == ("test source", "node.name")
    assert caught.value.problem == "found 5, expected a string"


def test_pods_of_one_name_in_two_namespaces_are_two() -> None:
    other = POD.replace('metadata.name = "web"', 'metadata = { name = "web", namespace = "other" }')
    assert len(parse(POD + other, "x").kubelet.static_pods) == 2


def test_a_text_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(ConfigError, match="expected at most 262144"):
        parse("#" * (sources.MAX_SIZE + 1), "x")


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"[node]\nname = '{'x' * 10_000}'", "x")
    assert len(str(caught.value)) < 250


def test_every_field_is_documented_in_the_json_schema() -> None:
    schema = json_schema()
    json.dumps(schema)
    missing = [
        f"{name}.{field}"
        for name, definition in schema["$defs"].items()
        for field, description in definition["properties"].items()
        if "description" not in description
    ]
    assert missing == []
    assert all(definition["additionalProperties"] is False for definition in schema["$defs"].values())


def test_what_a_worker_gets_are_plain_values() -> None:
    plain = to_builtins(parse(EVERYTHING, "x").network)
    assert json.loads(json.dumps(plain))["interfaces"][0]["addresses"] == ["192.0.2.10/24", "2001:db8::10/64"]


KEYS = st.sampled_from(
    ["node", "name", "network", "interfaces", "mac", "addresses", "routes", "to", "via", "kubelet", "static_pods",
     "manifests", "config", "maxPods", "metadata", "spec", "containers", "disks", "var", "size", "api", "roles", "uid",
     "log", "console", "timeout", "dns", "`", "a b", "[...]", ""]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
# Like the real thing down to a depth that differs, so that every kind of error is met and not only the first.
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "node": VALUES | st.fixed_dictionaries({}, optional={"name": VALUES, "address": VALUES}),
        "network": VALUES
        | st.fixed_dictionaries(
            {},
            optional={
                "interfaces": st.lists(
                    VALUES | st.fixed_dictionaries({"name": VALUES | st.just("eth0")}, optional={"routes": VALUES})
                )
            },
        ),
        "kubelet": VALUES
        | st.fixed_dictionaries(
            {},
            optional={
                "static_pods": st.lists(
                    st.fixed_dictionaries(
                        {"apiVersion": st.just("v1"), "kind": st.just("Pod")},
                        optional={"metadata": VALUES, "spec": VALUES},
                    ),
                    max_size=3,
                ),
                "manifests": st.dictionaries(KEYS, VALUES, max_size=3),
                "config": st.dictionaries(KEYS, VALUES, max_size=3),
            },
        ),
        "disks": VALUES | st.fixed_dictionaries({"var": st.fixed_dictionaries({"size": VALUES})}),
        "api": VALUES | st.fixed_dictionaries({"roles": st.lists(VALUES | st.fixed_dictionaries({"uid": VALUES}))}),
    },
)


@given(st.dictionaries(KEYS, VALUES, max_size=4) | SHAPED)
def test_whatever_a_table_holds_only_a_config_error_comes_out(table: dict[str, Any]) -> None:
    try:
        config = convert(table, "x")
    except ConfigError as error:
        assert str(error).startswith("x: ")  # noqa: PT017 -- of random input either may be right
    else:
        assert isinstance(config, Config)


@given(st.text(max_size=200))
def test_whatever_a_text_holds_only_a_config_error_comes_out(text: str) -> None:
    try:
        parse(text, "x")
    except ConfigError as error:
        assert str(error).startswith("x: ")  # noqa: PT017 -- of random input either may be right


@given(st.text(max_size=20))
def test_a_value_passes_a_check_or_is_a_mismatch(value: str) -> None:
    everything = (checks.subdomain, checks.node_name, checks.link_name, checks.mac, checks.address, checks.node_address,
                  checks.interface_address, checks.destination, checks.host, checks.size)  # fmt: skip
    for check in everything:
        try:
            check(value)
        except MismatchError as error:
            assert str(error).startswith("found ")  # noqa: PT017 -- of random input either may be right


@pytest.mark.parametrize(
    ("size", "expected"),
    [("50%", 512 << 20), ("5%", (1 << 30) * 5 // 100), ("64Mi", 64 << 20), ("2Gi", 2 << 30), ("67108864", 64 << 20)],
)
def test_sizes_are_shares_of_the_memory_or_bytes(size: str, expected: int) -> None:
    checks.size(size)
    assert checks.size_bytes(size, 1 << 30) == expected


@pytest.mark.parametrize("size", ["", "0", "4%", "91%", "63Mi", "1.5Gi", "-1", "1 Gi", "1G", "٣Gi", "100000%"])
def test_sizes_that_make_no_var_are_refused(size: str) -> None:
    with pytest.raises(MismatchError):
        checks.size(size)


@pytest.mark.parametrize(
    "key",
    [
        "a", "example.org/A_b.c", "node.kubernetes.io/x", "a.node.kubernetes.io/x",
        "kubelet.kubernetes.io/x", "topology.kubernetes.io/zone", "kubernetes.io/arch", "notkubernetes.io/x",
        "beta.kubernetes.io/instance-type", "failure-domain.beta.kubernetes.io/region",
    ],
)  # fmt: skip
def test_labels_that_a_kubelet_may_give_its_node(key: str) -> None:
    config = parse(f"{CLUSTER}\nlabels = {{ '{key}' = 'a_B.1' }}", "x")
    assert config.cluster is not None
    assert config.cluster.labels == {key: "a_B.1"}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("kubernetes.io/x", "", "expected none of Kubernetes' own but"),
        ("node-role.kubernetes.io/control-plane", "", "expected none of Kubernetes' own but"),
        ("node-restriction.kubernetes.io/x", "", "expected none of Kubernetes' own but"),
        ("a.k8s.io/x", "", "expected none of Kubernetes' own but"),
        ("topology.kubernetes.io/rack", "", "expected none of Kubernetes' own but"),
        ("A.b/x", "", "expected an RFC 1123 subdomain"),
        ("/x", "", "expected an RFC 1123 subdomain"),
        ("a/b/c", "", "expected an RFC 1123 subdomain"),
        ("-x", "", "expected letters, digits"),
        ("a/", "", "expected letters, digits"),
        ("x", "a,b=c", "expected letters, digits"),
        ("x", "é", "expected letters, digits"),
        ("x", "x" * 64, "at most 63"),
    ],
)
def test_labels_that_a_kubelet_refuses(key: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{CLUSTER}\nlabels = {{ '{key}' = '{value}' }}", "x")
    assert caught.value.key == f"cluster.labels.'{key}'"
    assert expected in caught.value.problem


def test_a_secret_is_refused_where_every_pod_can_read_it() -> None:
    """Also one that is wrong: it is seen by others all the same."""
    for text in (CLUSTER, "[cluster]\nbootstrap_kubeconfig = 5"):
        with pytest.raises(ConfigError, match="found a secret, expected none") as caught:
            parse(text, sources.COMMAND_LINE)
        assert caught.value.key == "cluster.bootstrap_kubeconfig"
    assert parse("[node]\nname = 'a'", sources.COMMAND_LINE).node.name == "a"


def test_a_secret_is_never_shown() -> None:
    values = shown(parse(f"{CLUSTER}\ndrain_seconds = 5", "x"))
    assert values["cluster"] == {
        "bootstrap_kubeconfig": HIDDEN, "labels": {}, "drain_seconds": 5, "max_unavailable": 1,
    }  # fmt: skip
    assert shown(Config())["cluster"] is None


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (f"{CLUSTER}\n[node]\nname = 'a'", "\n[node]\nname = 'a'"),
        (f"cluster = {{ bootstrap_kubeconfig = {json.dumps(kubeconfig())} }}\n[node]", f'"{HIDDEN}" }}\n[node]'),
        (f"cluster.'bootstrap_kubeconfig' = '{kubeconfig()}'\n#{TOKEN}", HIDDEN),
        (f"{CLUSTER}\n#bootstrap_kubeconfig = '...'", HIDDEN),
        ("#[cluster]\n#bootstrap_kubeconfig = '...'", HIDDEN),
        (f"[cluster]\nbootstrap_kubeconfig = {json.dumps(kubeconfig()).replace('a', chr(92) + 'u0061')}", HIDDEN),
        ("[node]\nname = 'a'", "[node]\nname = 'a'"),
    ],
)
def test_an_accepted_text_is_shown_without_its_secrets(text: str, seen: str) -> None:
    parse(text, "x")
    found = shown_text(text)
    assert TOKEN not in found
    assert "certificate-authority-data" not in found
    assert found.endswith(seen)
    assert seen != HIDDEN or found == HIDDEN


def told(text: str) -> tuple[str, str]:
    """What readers of the API are shown of a node's configuration, and of what is wrong with it."""
    node = Node()
    node.found = sources.Found("QEMU fw_cfg", text)
    boot._judge(node)
    answer = asyncio.run(config(Call(node, Peer(0, 0, 0, Role.READER, "a test"))))
    return answer["text"], answer["error"] or ""


BLOCK = f"'''\n{kubeconfig()}'''"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"[cluster]\nbootstrap-kubeconfig = {BLOCK}", "found an unknown key, expected bootstrap_kubeconfig"),
        (f"bootstrap_kubeconfig = {BLOCK}", "bootstrap_kubeconfig: found an unknown key"),
        (f"[node]\nbootstrap_kubeconfig = {BLOCK}", "node.bootstrap_kubeconfig: found an unknown key"),
        (f"{CLUSTER}\nlabels.bootstrap_kubeconfig = {BLOCK}", f"found text of {len(kubeconfig())} characters"),
        (f"[[cluster]]\nbootstrap_kubeconfig = {BLOCK}", "cluster: found an array, expected a table"),
        (f"cluster = {BLOCK}", "cluster: found text, expected a table"),
        (f"cluster = '{TOKEN}'", "cluster: found text, expected a table"),
        (f"network.dns = '{TOKEN}'", "network.dns: found text, expected an array"),
        (f"network.timeout = '{TOKEN}'", f"found '{HIDDEN}', expected an integer"),
        (f"{TOKEN} = true\n'{TOKEN}' = 1", "found an unknown key"),
        (f"['{TOKEN}']\n['{TOKEN}']", "not valid TOML: Cannot declare"),
        (f"[cluster]\nbootstrap_kubeconfig = '{TOKEN}'", "found text, expected a table"),
        (f"[cluster]\nbootstrap_kubeconfig = {BLOCK[:-3]}", "not valid TOML"),
        ("[node]\nnmae = 'a'", "node.nmae: found an unknown key, expected name"),
    ],
)
def test_nothing_of_a_refused_text_is_shown_but_what_is_wrong(text: str, error: str) -> None:
    shown, said = told(text)
    assert shown == HIDDEN
    assert TOKEN not in said
    assert error in said


SECRET = st.sampled_from([TOKEN, kubeconfig(), f"token: {TOKEN}\n"])
PLACES = KEYS | SECRET | st.sampled_from(["cluster", "bootstrap_kubeconfig", "labels", "x"])
LEAKY = st.recursive(
    SECRET | st.integers(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PLACES, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(PLACES, LEAKY, max_size=3))
def test_no_token_in_a_wrong_place_is_shown(table: dict[str, Any]) -> None:
    for seen in told("".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items())):
        assert TOKEN not in seen


@given(st.integers(0, len(CLUSTER)), st.integers(0, 40), st.text("[]='\"#\n\\x.", max_size=4), st.booleans())
def test_no_token_of_a_mistyped_text_is_shown(at: int, lost: int, typed: str, commented: bool) -> None:
    text = CLUSTER[:at] + typed + CLUSTER[at + lost :]
    for seen in told(text.replace("\n", "\n#") if commented else text):
        assert TOKEN not in seen
