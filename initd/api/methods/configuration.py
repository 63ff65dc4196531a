"""The configuration in force and its schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from initd.api.registry import Call, Role, method

if TYPE_CHECKING:
    from initd.api.types import ConfigInfo


@method("config", Role.READER)
async def config(call: Call) -> ConfigInfo:
    """The configuration in force, where it came from, and what is wrong with it if anything is."""
    import msgspec  # noqa: PLC0415 there already if a configuration was read

    node = call.node
    return {
        "source": node.found.source if node.found else None,
        "text": node.found.text if node.found else "",
        "values": msgspec.to_builtins(node.config) if node.config is not None else {},
        "error": node.config_error,
    }


@method("config.schema", Role.READER)
async def schema(_call: Call) -> dict[str, Any]:
    """The configuration's JSON Schema."""
    from initd.config.schema import json_schema  # noqa: PLC0415 there already if a configuration was read

    return json_schema()
