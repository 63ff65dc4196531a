"""Checks of single values that a type cannot express; each raises MismatchError with what was found and expected."""

import math
import re
from collections.abc import Callable, Collection
from typing import Any, Final

_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_LABEL}(?:\.{_LABEL})*"
_SIZE: Final = re.compile(r"([1-9][0-9]{0,11})(%|Ki|Mi|Gi)?")
_UNITS: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_SMALLEST: Final = 64 << 20
_MAX_DEPTH: Final = 64
# Of Kubernetes' own labels a kubelet may set these: k8s.io/kubelet/pkg/apis/well_known_labels.go.
_KUBERNETES: Final = re.compile(r"(.*\.)?(kubernetes|k8s)\.io/.*")
_OWN_LABEL: Final = re.compile(
    r"(.*\.)?(kubelet|node)\.kubernetes\.io/.*|(beta\.)?kubernetes\.io/(os|arch)|kubernetes\.io/hostname"
    r"|(topology|failure-domain\.beta)\.kubernetes\.io/(zone|region)|beta\.kubernetes\.io/instance-type"
)


class MismatchError(ValueError):
    """Raised by a check of one value; at is the rest of the path below that value (".metadata.name"), or ""."""

    def __init__(self, expected: str, found: str, at: str = "") -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.at = at


def describe(value: object) -> str:
    """Name a TOML value in a few words for an error. A long text is not quoted: it may be a secret in a wrong place."""
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list() | tuple():
            return "an array" if value else "an empty array"
        case str():
            return repr(value) if len(value) <= 60 and "\n" not in value else f"text of {len(value)} characters"
        case int() if value.bit_length() > 64:
            return "a very large integer"
        case _:
            return str(value)


def unknown_key(name: str, known: Collection[str], at: str) -> MismatchError:
    """Make the error for a key that is none of the known ones; it says which one may have been meant."""
    from difflib import get_close_matches  # noqa: PLC0415 -- only an error needs it, and PID 1 pays for every module

    by_lower = {key.lower(): key for key in known}
    near = get_close_matches(name.lower(), by_lower, n=1)
    expected = by_lower[near[0]] if near else "one of " + ", ".join(sorted(known)) if len(known) < 20 else "a known one"
    return MismatchError(expected, "an unknown key", at)


def _like(pattern: str, expected: str, limit: int) -> Callable[[Any], None]:
    """Make the check of a text of at most `limit` characters that matches a pattern as a whole."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> None:
        if not isinstance(value, str) or len(value) > limit or not compiled.fullmatch(value):
            raise MismatchError(expected, describe(value))

    return check


def _ip(expected: str, kind: str = "ip_address", *refused: str) -> Callable[[str], None]:
    """Make the check of a text that the function `kind` of ipaddress takes and that has none of these properties.

    Only a plain address has no prefix length; zones (fe80::1%eth0) are not for files.
    """

    def check(value: str) -> None:
        import ipaddress  # noqa: PLC0415 -- PID 1 pays for it only where an address is configured

        try:
            ip = getattr(ipaddress, kind)(value)
        except ValueError:
            ip = None  # said below, in our words
        written = "%" not in value and ("/" in value) == (kind != "ip_address")
        if ip is None or not written or any(getattr(ip, name) for name in refused):
            raise MismatchError(expected, describe(value))

    return check


subdomain = _like(_SUBDOMAIN, "an RFC 1123 subdomain", 253)  # as Kubernetes wants object names
_file_name = _like(_SUBDOMAIN, "an RFC 1123 subdomain as name", 253)
# What sethostname(2) and a Kubernetes label value take as well.
node_name = _like(_SUBDOMAIN, "lower-case letters, digits, '-' and '.', at most 63 characters", 63)
# The kernel's IFNAMSIZ is 16 with the final NUL, and a link is a folder in /sys.
link_name = _like(r"(?!\.{1,2}\Z)[!-.0-9;-~]+", "a link name such as eth0, at most 15 characters", 15)
mac = _like(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", "a lower-case MAC address such as 52:54:00:12:34:56", 17)
address = _ip("an IPv4 or IPv6 address")
# The kubelet refuses these classes as --node-ip.
node_address = _ip(
    "an IPv4 or IPv6 address that other hosts can reach", "ip_address",
    "is_loopback", "is_multicast", "is_link_local", "is_unspecified",
)  # fmt: skip
interface_address = _ip("an address with its prefix length, such as 192.0.2.10/24", "ip_interface")
destination = _ip("a network such as 198.51.100.0/24, with no host bits set", "ip_network")
_host_address = _ip("an address or a host name")
_host_name = _like(_SUBDOMAIN, "an address or a host name", 253)
_label = _like(r"[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?", "letters, digits, '-', '_' and '.', at most 63", 63)
_PORT: Final = r"(?::[0-9]{1,5})?"
registry = _like(rf"_default|{_SUBDOMAIN}{_PORT}", "a registry such as registry.example:5000, or _default", 260)
mirror = _like(rf"https?://(?:{_SUBDOMAIN}|\[[0-9a-f:]+\]){_PORT}(?:/[-\w./]*)?", "a URL, http:// or https://", 1000)


def labels(value: dict[str, str]) -> None:
    """Labels that a kubelet takes as --node-labels, and that its rights allow it to give its own node."""
    for key, text in value.items():
        prefix, slash, name = key.rpartition("/")
        try:
            if slash:
                subdomain(prefix)
            _label(name)
            if text:
                _label(text)
            if _KUBERNETES.fullmatch(key) and not _OWN_LABEL.fullmatch(key):
                expected = "none of Kubernetes' own but those that a kubelet may set, as node.kubernetes.io/NAME"
                raise MismatchError(expected, f"{key!r}")  # noqa: TRY301 where it is, is said below
        except MismatchError as error:
            error.at = f".{key!r}"
            raise


def host(value: str) -> None:
    """A host by address or by name; 300.1.1.1 is a wrong address, not a name."""
    if ":" in value or re.fullmatch(r"[0-9.]+", value):
        _host_address(value)
    else:
        _host_name(value.lower())


def size(value: str) -> None:
    expected = "a share of the memory from 5% to 90%, or at least 64Mi (suffixes Ki, Mi, Gi)"
    found = _SIZE.fullmatch(value)
    number, unit = (int(found[1]), found[2]) if found else (0, None)
    if not (5 <= number <= 90 if unit == "%" else number * _UNITS.get(unit or "", 1) >= _SMALLEST):
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


def file_names(value: dict[str, str]) -> None:
    """Names that become file names in the kubelet's folder of static pods, which is flat."""
    for name in value:
        _file_name(name)
