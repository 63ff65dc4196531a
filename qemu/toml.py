"""Plain data as TOML, which the standard library reads but does not write."""

from __future__ import annotations

import json


def toml(value: object) -> str:
    """Write plain data as a TOML value on one line. Raises TypeError for what has no form there, None among it."""
    match value:
        case str():
            # JSON escapes what TOML does but DEL; its escapes for what lies beyond 16 bits are none of TOML's.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool() | int() | float():
            return json.dumps(value)
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"{type(value).__name__} has no form in TOML")
