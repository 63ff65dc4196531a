"""The CIS benchmark's checks of a node as kube-bench's repository writes them, answered from the node's API and the
kubelet's /configz instead of a shell on the node.

A check runs a command (`audit`), looks for flags in what it prints, and, where that does not satisfy it, for paths in
what `audit_config` prints. kube-bench's docs/controls.md describes the form; only what the node's checks use is here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_STAT = re.compile(r"stat -c (permissions=%a|%U:%G) (\$\w+)")
_VALUE = r"(?:=| )(\S+)"


class Facts(NamedTuple):
    """What is known of a node: (mode, owner) of each of the benchmark's files that is there, by the benchmark's name
    for it ("$kubeletconf"); each program's command line, by its name; each one's configuration, as plain data.
    """

    files: Mapping[str, tuple[str, str]]
    commands: Mapping[str, str]
    configurations: Mapping[str, Mapping[str, Any]]


def failed(controls: Mapping[str, Any], facts: Facts) -> dict[str, str]:
    """The checks that do not pass: their text by their id. Raises ValueError for one that asks what is not known."""
    checks = [check for group in controls["groups"] for check in group["checks"]]
    return {str(check["id"]): str(check["text"]) for check in checks if not _passes(check, facts)}


def _passes(check: Mapping[str, Any], facts: Facts) -> bool:
    output, configuration = _audit(check, facts)
    items = check["tests"]["test_items"]
    together = any if check["tests"].get("bin_op") == "or" else all
    return together(_holds(item, output, configuration) for item in items)


def _audit(check: Mapping[str, Any], facts: Facts) -> tuple[str, Mapping[str, Any] | None]:
    """What the check's commands would print on the node."""
    audit = str(check["audit"])
    if found := _STAT.search(audit.replace("$CAFILE", "$kubeletcafile")):
        form, name = found.groups()
        missing = "File not found" if "File not found" in audit else ""
        mode, owner = facts.files.get(name, ("", ""))
        return (missing if not mode else f"permissions={mode}" if "%a" in form else owner), None
    if found := re.fullmatch(r"/bin/ps -fC \$(\w+)bin", audit.strip()):
        return facts.commands[found[1]], facts.configurations.get(found[1], {})
    raise ValueError(f"check {check['id']}: its audit is not understood: {audit}")


def _holds(item: Mapping[str, Any], output: str, configuration: Mapping[str, Any] | None) -> bool:
    flag, wanted = str(item["flag"]), item.get("set", True)
    there = re.search(rf"(?:^|\s){re.escape(flag)}(?:{_VALUE}|\s|$)", output)
    value: object = there and there[1]
    found = there is not None
    if not found and configuration is not None and "path" in item:
        value = _at(configuration, str(item["path"]))
        found = value is not None
    if not wanted:
        return not found
    if not found or "compare" not in item:
        return found
    compare = item["compare"]
    return _OPERATIONS[compare["op"]](_text(flag if value is None else value), _text(compare["value"]))


def _at(configuration: Mapping[str, Any], path: str) -> object:
    """The value at a JSONPath such as {.a.b}, or {range .a[:]}...; None if there is none."""
    value: Any = configuration
    for key in re.sub(r"^\{(range )?\.|\[:\].*|\}.*", "", path).split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return ",".join(map(str, value))
    return str(value)


def _elements(text: str) -> set[str]:
    return set(filter(None, text.split(",")))


_OPERATIONS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": lambda found, wanted: found == wanted,
    "noteq": lambda found, wanted: found != wanted,
    "gte": lambda found, wanted: int(found) >= int(wanted),
    "has": lambda found, wanted: wanted in found,
    "nothave": lambda found, wanted: wanted not in found,
    "bitmask": lambda found, wanted: int(found, 8) & ~int(wanted, 8) == 0,
    "valid_elements": lambda found, wanted: _elements(found) <= _elements(wanted),
}


def ids(controls: Mapping[str, Any]) -> list[str]:
    """The ids of all checks."""
    return [str(check["id"]) for group in controls["groups"] for check in group["checks"]]
