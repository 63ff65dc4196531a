"""The kubeconfig that a node joins a cluster with: the user's text, judged, and the one that is made of it.

Source: k8s.io/client-go/tools/clientcmd/api/v1. No error shows what stands in the text: it is a secret.
"""

import binascii
import re
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from initd.config import checks, walk
from initd.config.checks import MismatchError

_SERVER = re.compile(r"https://(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(/[!-~]*)?")
TOKEN = re.compile(r"[a-z0-9]{6}\.[a-z0-9]{16}")  # for bootstrap: k8s.io/cluster-bootstrap/token/api
_BODY = r"-----\s[A-Za-z0-9+/=\s]+-----END "


class _Cluster(Struct, rename="kebab", forbid_unknown_fields=True):
    """Other keys name files, which a node does not have, or would not have it check who answers."""

    server: str
    certificate_authority_data: str


class _User(Struct, rename="kebab", forbid_unknown_fields=True, omit_defaults=True):
    """Other keys name files or programs, which a node does not have."""

    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""


class _Context(Struct):
    cluster: str
    user: str


class _Named(Struct):
    name: str


class _NamedCluster(_Named):
    cluster: _Cluster


class _NamedUser(_Named):
    user: _User


class _NamedContext(_Named):
    context: _Context


class _Kubeconfig(Struct, rename="kebab"):
    current_context: str
    clusters: list[_NamedCluster]
    users: list[_NamedUser]
    contexts: list[_NamedContext]


_Entry = TypeVar("_Entry", bound=_Named)


class Joining(NamedTuple):
    """What is made of it: a kubeconfig (JSON, which is YAML) of what is needed only, and the cluster's CA (PEM)."""

    kubeconfig: bytes
    authority: bytes


@lru_cache(maxsize=1)  # it is judged and then rendered
def parse(text: str) -> Joining:
    """Read the text of a kubeconfig. Raises MismatchError."""
    table = _read(text)
    try:
        config = msgspec.convert(table, _Kubeconfig)
    except msgspec.ValidationError as error:
        raise walk.explain(error, _Kubeconfig, table, _describe) from None
    index, context = _one(config.contexts, config.current_context, ".current-context")
    at, chosen = f".contexts[{index}].context", context.context
    index, cluster = _one(config.clusters, chosen.cluster, f"{at}.cluster")
    number, user = _one(config.users, chosen.user, f"{at}.user")
    if not _SERVER.fullmatch(cluster.cluster.server):
        raise MismatchError("https://HOST:PORT", "something else", f".clusters[{index}].cluster.server")
    authority = cluster.cluster.certificate_authority_data
    made = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "initd",
        "contexts": [{"name": "initd", "context": {"cluster": "initd", "user": "initd"}}],
        "clusters": [{"name": "initd", "cluster": cluster.cluster}],
        "users": [{"name": "initd", "user": user.user}],
    }
    _judge(user.user, f".users[{number}].user")
    at = f".clusters[{index}].cluster.certificate-authority-data"
    return Joining(msgspec.json.encode(made), _pem(authority, "CERTIFICATE", at))


def _read(text: str) -> Any:
    """YAML, of which JSON is a part; every scalar is a string."""
    import yaml  # noqa: PLC0415 only a node of a cluster pays for it

    try:
        return yaml.load(text, yaml.BaseLoader)  # noqa: S506 it makes nothing but strings, lists and dicts
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        found = f"none ({error.problem}" + (f" at line {mark.line + 1})" if mark else ")")
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        found = f"none ({type(error).__name__})"
    raise MismatchError("a kubeconfig in YAML or JSON", found)


def _describe(value: object) -> str:
    return "text" if isinstance(value, str) else checks.describe(value)


def _one(entries: list[_Entry], name: str, at: str) -> tuple[int, _Entry]:
    found = [(index, entry) for index, entry in enumerate(entries) if entry.name == name]
    if len(found) != 1:
        raise MismatchError("the name of exactly one", f"that of {len(found)}", at)
    return found[0]


def _judge(user: _User, at: str) -> None:
    if user.token and not (user.client_certificate_data or user.client_key_data):
        if not re.fullmatch("[!-~]+", user.token):
            raise MismatchError("a token without spaces", "something else", f"{at}.token")
    elif user.token or not (user.client_certificate_data and user.client_key_data):
        raise MismatchError("either token, or client-certificate-data and client-key-data", "something else", at)
    else:
        _pem(user.client_certificate_data, "CERTIFICATE", f"{at}.client-certificate-data")
        _pem(user.client_key_data, "PRIVATE KEY", f"{at}.client-key-data")


def _pem(value: str, label: str, at: str) -> bytes:
    try:
        data = binascii.a2b_base64(re.sub("[\r\n]", "", value), strict_mode=True)  # as Go reads it
    except ValueError:
        data = b""
    if not has_pem(data, label):
        raise MismatchError(f"base64 of a PEM {label}", "something else", at)
    return data


def has_pem(data: bytes, label: str) -> bool:
    """Whether there is a whole block of that kind (CERTIFICATE, PRIVATE KEY) in a PEM file."""
    return re.search(f"-----BEGIN [A-Z ]*{label}{_BODY}[A-Z ]*{label}-----".encode(), data) is not None
