"""Conditions on events, as people write them: `ready`, `phase:network`, `service:kubelet:running`.

The general form is KIND[:WORD[:WORD]]; the words are compared with the fields that FIELDS names for that kind, in that
order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from qemu.errors import HarnessError

Condition: TypeAlias = Callable[[Mapping[str, Any]], bool]

FIELDS: dict[str, tuple[str, ...]] = {
    "phase": ("name", "status"),
    "service": ("name", "state"),
    "node": ("phase",),
    "network": (),
    "identity": ("name",),
    "device": ("subsystem", "action", "devname"),
    "images": (),
    "resumed": (),
    "shutdown": ("action", "by"),
    "cluster": (),
    "drain": (),
    "turn": (),
    "time": ("server",),
}

# What a kind must also say for the short form to mean what it seems to: a network event that says "not ready" is not
# "the network came".
_IMPLIED: dict[str, dict[str, object]] = {"network": {"ready": True}, "cluster": {"ready": True}}


def condition(text: str) -> Condition:
    """Return the predicate that text names. Raises HarnessError if it names none."""
    kind, *words = text.split(":")
    wanted: dict[str, object]
    if text == "ready":
        kind, wanted = "node", {"ready": True}
    elif kind not in FIELDS or not all(words) or len(words) > len(FIELDS[kind]):
        forms = ", ".join(":".join((name, *(field.upper() for field in fields))) for name, fields in FIELDS.items())
        message = f"no such event: {text!r}"
        raise HarnessError(message, f"expected ready, or one of these, where words at the end may be left out: {forms}")
    else:
        wanted = {**dict(zip(FIELDS[kind], words, strict=False)), **_IMPLIED.get(kind, {})}
        if kind == "phase" and len(words) == 1:
            wanted["status"] = "done"

    def holds(event: Mapping[str, Any]) -> bool:
        return event.get("kind") == kind and all(event.get(field) == value for field, value in wanted.items())

    return holds
