"""The chapters of README.md that are made from the code: `python -m tests.readme` writes them anew.

A chapter stands between `<!-- made: NAME -->` and `<!-- /made: NAME -->`. What a person writes stands outside of these.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, is_typeddict

import initd.api.methods  # noqa: F401 registers the methods
from initd import boot
from initd.api import registry, types
from initd.client.commands import COMMANDS, OTHERS, Command
from initd.config.schema import json_schema
from initd.supervise import states
from qemu.faults import FAULTS
from tests.vm.rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

README = Path(__file__).parents[1] / "README.md"
_SECTION = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- /made: \2 -->\n)", re.DOTALL)


def render(text: str) -> str:
    """Return the README with every made chapter anew. Raises ValueError if one of them has no place, or two."""
    places = [match[2] for match in _SECTION.finditer(text)]
    if sorted(places) != sorted(SECTIONS):
        raise ValueError(f"README.md: found places for {sorted(places)}, expected {sorted(SECTIONS)}")
    return _SECTION.sub(lambda match: f"{match[1]}\n{SECTIONS[match[2]]().strip()}\n\n{match[3]}", text)


def phases() -> str:
    """The boot's phases, in their order."""
    rows = [
        (
            str(number),
            f"`{phase.name}`",
            _said(phase.run),
            ", ".join([f"`{name}`" for name in phase.after] + [f"`{name}` or its failure" for name in phase.behind])
            or "-",
            "maintenance mode" if phase.fatal else "noted",
        )
        for number, phase in enumerate(boot.PHASES, 1)
    ]
    return _table(("", "phase", "what it does", "after", "if it fails"), rows)


def supervision() -> str:
    """What each state means, and the table of transitions."""
    said = dict(re.findall(r"^    ([a-z-]+)  +(\S.*)$", states.__doc__ or "", re.MULTILINE))
    meaning = [
        (
            f"`{state.value}`",
            said[state.value],
            "up" if state in states.WANTED else "down",
            "yes" if state in states.HAS_PROCESS else "no",
        )
        for state in states.State
    ]
    moves = [(f"`{state.value}`", _ways_out(steps)) for state, steps in states.TABLE.items()]
    tables = (("state", "meaning", "desired", "process"), meaning), (("state", "next state: upon"), moves)
    return "\n\n".join(_table(head, rows) for head, rows in tables)


def _ways_out(steps: Mapping[states.Event, states.Step]) -> str:
    """Where a state leads: each next state once, with the events that lead there."""
    upon: dict[states.State, list[str]] = {}
    for event, step in steps.items():
        upon.setdefault(step.state, []).append(event.value)
    return "; ".join(f"`{state.value}`: {', '.join(events)}" for state, events in upon.items())


def faults() -> str:
    """What happens when something fails: the rows of the table that the VM tests run, then the names without one."""
    rows = [
        (
            " + ".join(f"`{name}`" for name in (row.fault, row.also) if name),
            ", then ".join(FAULTS[name].says for name in (row.fault, row.also) if name),
            row.when,
            row.happens,
            f"{row.bound:g} s",
        )
        for row in ROWS
    ]
    used = {name for row in ROWS for name in (row.fault, row.also)}
    others = "; ".join(f"`{name}`: {fault.says}" for name, fault in FAULTS.items() if name not in used)
    return "\n\n".join(
        (_table(("name", "what fails", "while", "what happens", "within"), rows), f"Other names: {others}.")
    )


def commands() -> str:
    """initctl's commands."""
    rows = [
        (
            f"`initctl {command.words}{_arguments(command)}`",
            command.help,
            f"`{command.method}`" if command.method else "-",
        )
        for command in (*COMMANDS, *OTHERS)
    ]
    return _table(("command", "shows", "method"), rows)


def configuration() -> str:
    """Every table and key of the configuration, from its JSON Schema."""
    schema = json_schema()
    return "\n\n".join(_tables("", schema["$ref"], schema["$defs"]))


def api() -> str:
    """The API's methods, and the shapes of what they return."""
    shapes = [shape for shape in vars(types).values() if is_typeddict(shape) and shape.__module__ == types.__name__]
    return "\n\n".join((reference(registry.METHODS), "#### Shapes", _said(types), *map(_shape, shapes)))


def reference(methods: Mapping[str, registry.Method]) -> str:
    """A table of all methods, then what each is for."""
    entries = [methods[name] for name in sorted(methods)]
    rows = [
        (f"`{entry.signature()}`", entry.role.name.lower(), f"{'stream of ' * entry.streaming}`{entry.returns}`")
        for entry in entries
    ]
    texts = [f"**{entry.name}**: {entry.documentation()}" for entry in entries]
    return "\n\n".join((_table(("method", "role", "result"), rows), *texts))


def _shape(shape: Any) -> str:
    keys = ", ".join(f"`{name}: {kind.__forward_arg__}`" for name, kind in shape.__annotations__.items())
    return f"**{shape.__name__}**: {_said(shape)} {keys}"


def _said(documented: object) -> str:
    """A docstring as one paragraph."""
    return " ".join((documented.__doc__ or "").split())


SECTIONS: Mapping[str, Callable[[], str]] = {
    "phases": phases,
    "faults": faults,
    "supervision": supervision,
    "commands": commands,
    "configuration": configuration,
    "api": api,
}


def _tables(path: str, reference: str, definitions: Mapping[str, Any]) -> list[str]:
    """The part about one TOML table, whose path is `a.b`, or `[a.b]` if there may be many, then those in it."""
    definition = definitions[reference.rpartition("/")[2]]
    rows, inner = [], []
    for name, key in definition["properties"].items():
        below = f"{path.strip('[]')}.{name}".lstrip(".")
        table = next((part["$ref"] for part in (key, *key.get("anyOf", ())) if "$ref" in part), None)
        if table is not None:
            inner += _tables(below, table, definitions)
        elif "$ref" in key.get("items", {}):
            inner += _tables(f"[{below}]", key["items"]["$ref"], definitions)
        if table is None and path:
            default = "required" if name in definition["required"] else _default(key)
            rows.append((f"`{name}`", _type(key), default, _description(key)))
    if not rows:
        return inner
    head = f"#### `[{path}]`\n\n{definition['description']}"
    return [head, _table(("key", "type", "default", "meaning"), rows), *inner]


def _type(key: Mapping[str, Any]) -> str:
    match key:
        case {"anyOf": parts}:
            text = " or ".join(_type(part) for part in parts if part.get("type") != "null")
        case {"enum": values}:
            text = " or ".join(f"`{json.dumps(value)}`" for value in values)
        case {"type": "array", "items": {"$ref": _}}:
            text = "array of tables, below"
        case {"type": "array", "items": items}:
            text = f"array of: {_type(items)}"
        case {"type": "object"}:
            text = "table" + (" of strings" if "additionalProperties" in key else "")
        case {"type": "integer", "minimum": least, "maximum": most}:
            text = f"integer, {least} to {most}"
        case _:
            text = key["type"] + (f" ({key['format']})" if "format" in key else "")
    return text


def _default(key: Mapping[str, Any]) -> str:
    value = key.get("default")
    return "-" if value is None or value in ([], (), {}) else f"`{json.dumps(value)}`"


def _description(key: Mapping[str, Any]) -> str:
    examples = ", ".join(f"`{_toml(value)}`" for value in key.get("examples", ()))
    return f"{key['description']} Example: {examples}." if examples else key["description"]


def _toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = ((name if name.isidentifier() else json.dumps(name), item) for name, item in value.items())
        return "{ " + ", ".join(f"{name} = {json.dumps(item)}" for name, item in pairs) + " }"
    return json.dumps(value)


def _arguments(command: Command) -> str:
    words = []
    for argument in command.arguments:
        if argument.default is None:
            words.append(f"[{argument.name.upper()} ...]" if argument.name == "params" else argument.name.upper())
        else:
            value = "" if isinstance(argument.default, bool) else " N"
            words.append(f"[{argument.options[-1]}{value}]")
    return "".join(f" {word}" for word in words)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Write README.md anew if something in it is not as the code is."""
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if after != before:
        README.write_text(after, encoding="utf-8")
    print("README.md", "rewritten" if after != before else "is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
