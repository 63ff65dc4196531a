"""Plain data as TOML, which the standard library reads but does not write."""

from __future__ import annotations

import json


def toml(value: object) -> str:
    """Write plain data as a TOML value on one line. Raises TypeError for what has no form there, None among it."""
    match value:
        case bool() | int() | float() | str():
            return json.dumps(value)
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"{type(value).__name__} has no form in TOML")
