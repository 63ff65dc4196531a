"""Checks of single values that a type cannot express; each raises MismatchError with what was found and expected."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, Final

from initd.config.errors import MismatchError

_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_LINK: Final = re.compile(r"[!-~]{1,15}")  # the kernel's IFNAMSIZ is 16 with the final NUL
_SIZE: Final = re.compile(r"([1-9][0-9]{0,11})(%|Ki|Mi|Gi)?")
_UNITS: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_SMALLEST: Final = 64 << 20
_MAX_DEPTH: Final = 64


def describe(value: object) -> str:
    """Name a TOML value in a few words for an error, shortened so that no one can fill the log with it."""
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list() | tuple():
            return "an array" if value else "an empty array"
        case str():
            return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
        case int() if value.bit_length() > 64:
            return "a very large integer"
        case _:
            return str(value)


def unknown_key(name: str, known: Collection[str]) -> MismatchError:
    """Make the error for a key that is none of the known ones; it says which one may have been meant."""
    from difflib import get_close_matches  # noqa: PLC0415 -- only an error needs it, and PID 1 pays for every module

    by_lower = {key.lower(): key for key in known}
    near = get_close_matches(name.lower(), by_lower, n=1)
    expected = by_lower[near[0]] if near else "one of " + ", ".join(sorted(known)) if len(known) < 20 else "a known one"
    return MismatchError(expected, "an unknown key")


def _matches(pattern: re.Pattern[str], value: str, expected: str, limit: int) -> None:
    if len(value) > limit or not pattern.fullmatch(value):
        raise MismatchError(expected, describe(value))


def subdomain(value: Any) -> None:
    """RFC 1123 subdomain, as Kubernetes wants object names."""
    _matches(_SUBDOMAIN, value, "lower-case letters, digits, '-' and '.' (an RFC 1123 subdomain)", 253)


def node_name(value: str) -> None:
    """A subdomain that sethostname(2) and a Kubernetes label value (63 characters) take as well."""
    _matches(_SUBDOMAIN, value, "lower-case letters, digits, '-' and '.', at most 63 characters", 63)


def link_name(value: str) -> None:
    if not _LINK.fullmatch(value) or "/" in value or ":" in value or value in {".", ".."}:
        raise MismatchError("a link name such as eth0, at most 15 characters", describe(value))


def mac(value: str) -> None:
    _matches(_MAC, value, "a lower-case MAC address such as 52:54:00:12:34:56", 17)


def address(value: str) -> None:
    """An IPv4 or IPv6 address without prefix or zone."""
    _ip(value, "an IPv4 or IPv6 address")


def node_address(value: str) -> None:
    """An address that the kubelet takes as --node-ip: it refuses the classes tested here."""
    expected = "an IPv4 or IPv6 address that other hosts can reach"
    ip = _ip(value, expected)
    if ip.is_loopback or ip.is_multicast or ip.is_link_local or ip.is_unspecified:
        raise MismatchError(expected, describe(value))


def interface_address(value: str) -> None:
    """An address with its prefix length; host bits may be set."""
    _ip(value, "an address with its prefix length, such as 192.0.2.10/24", "ip_interface")


def destination(value: str) -> None:
    """A network with no host bits set; 0.0.0.0/0 and ::/0 are the default routes."""
    _ip(value, "a network such as 198.51.100.0/24, with no host bits set", "ip_network")


def host(value: str) -> None:
    """A host by address or by name."""
    expected = "an address or a host name"
    if ":" in value or re.fullmatch(r"[0-9.]+", value):  # 300.1.1.1 is a wrong address, not a name
        _ip(value, expected)
    else:
        _matches(_SUBDOMAIN, value.lower(), expected, 253)


def _ip(value: str, expected: str, kind: str = "ip_address") -> Any:
    """What the function `kind` of ipaddress makes of the value; zones (fe80::1%eth0) are not for files.

    Only a plain address has no prefix length.
    """
    import ipaddress  # noqa: PLC0415 -- PID 1 pays for it only where an address is configured

    if "%" not in value and ("/" in value) == (kind != "ip_address"):
        try:
            return getattr(ipaddress, kind)(value)
        except ValueError:
            pass  # said below, in our words
    raise MismatchError(expected, describe(value))


def size(value: str) -> None:
    expected = "a share of the memory from 5% to 90%, or at least 64Mi (suffixes Ki, Mi, Gi)"
    found = _SIZE.fullmatch(value)
    if found is None:
        raise MismatchError(expected, describe(value))
    number, unit = int(found[1]), found[2]
    good = 5 <= number <= 90 if unit == "%" else number * _UNITS.get(unit or "", 1) >= _SMALLEST
    if not good:
        raise MismatchError(expected, describe(value))


def size_bytes(value: str, memory: int) -> int:
    """Bytes meant by a checked size; memory is the machine's total in bytes, of which a percentage is taken."""
    if value.endswith("%"):
        return memory * int(value[:-1]) // 100
    return int(value[:-2]) * _UNITS[value[-2:]] if value[-2:] in _UNITS else int(value)


def plain(value: object, at: str = "") -> None:
    """Only what JSON can say: TOML's dates, nan and inf would break the file that is made from the value."""
    if at.count(".") + at.count("[") > _MAX_DEPTH:
        raise MismatchError(f"at most {_MAX_DEPTH} levels", "deeper nesting", at)
    match value:
        case dict():
            for key, item in value.items():
                plain(item, f"{at}.{key}")
        case list() | tuple():
            for index, item in enumerate(value):
                plain(item, f"{at}[{index}]")
        case float() if not math.isfinite(value):
            raise MismatchError("a finite number", str(value), at)
        case int() if value.bit_length() > 63:
            raise MismatchError("an integer of at most 64 bits", "a larger one", at)
        case str() | int() | float():
            pass
        case _:
            raise MismatchError("a string, number, boolean, array or table", f"a date or time ({value})", at)


def pod(value: dict[str, Any]) -> None:
    """A manifest that is plainly a Pod; everything below spec is the kubelet's to judge."""
    plain(value)
    for key, expected in (("apiVersion", "v1"), ("kind", "Pod")):
        if value.get(key) != expected:
            raise MismatchError(repr(expected), _found(value, key), f".{key}")
    metadata = {"namespace": "default", **_table(value, "metadata")}
    for key in ("name", "namespace"):
        try:
            subdomain(metadata.get(key))
        except (MismatchError, TypeError):
            raise MismatchError("an RFC 1123 subdomain", _found(metadata, key), f".metadata.{key}") from None
    spec = _table(value, "spec")
    if not spec.get("containers") or not isinstance(spec["containers"], list):
        raise MismatchError("an array of containers", _found(spec, "containers"), ".spec.containers")


def file_names(value: dict[str, str]) -> None:
    """Names that become file names in the kubelet's folder of static pods, which is flat."""
    for name in value:
        try:
            subdomain(name)
        except MismatchError:
            raise MismatchError("an RFC 1123 subdomain as name", describe(name)) from None


def _table(value: dict[str, Any], key: str) -> dict[str, Any]:
    table = value.get(key)
    if not isinstance(table, dict):
        raise MismatchError("a table", _found(value, key), f".{key}")
    return table


def _found(table: dict[str, Any], key: str) -> str:
    return describe(table[key]) if key in table else "nothing"


def pods(value: list[dict[str, Any]]) -> None:
    """No two manifests for one namespace and name: the kubelet would run one of them and flap between both."""
    seen: dict[tuple[str, str], int] = {}
    for index, manifest in enumerate(value):
        try:
            pod(manifest)
        except MismatchError as error:
            error.at = f"[{index}]{error.at}"
            raise
        metadata = manifest["metadata"]
        identity = (metadata.get("namespace", "default"), metadata["name"])
        first = seen.setdefault(identity, index)
        if first != index:
            found = f"{metadata['name']!r}, which static_pods[{first}] has already"
            raise MismatchError("a name of its own", found, f"[{index}].metadata.name")
