"""How initctl writes: aligned tables, JSON, YAML, colour where a person looks.

Text that came from a node is never trusted with the terminal: control characters are taken out before it is shown.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "bold": 1, "dim": 2}
_STATES = {
    **dict.fromkeys(("running", "ready", "done", "healthy"), "green"),
    **dict.fromkeys(("failing", "crash-loop", "failed", "maintenance", "notready"), "red"),
    **dict.fromkeys(("blocked", "starting", "stopping", "restarting", "backoff", "booting", "skipped"), "yellow"),
    "down": "dim",
}
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~])?")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
# Line breaks that PyYAML would write as they are, and what other versions of YAML read as a truth value or a number.
_QUOTED = re.compile("[\x85\u2028\u2029]|^([yn]|[-+.0-9e]+)$", re.IGNORECASE)


class Style:
    """What the place that is written to can show: colours, and how wide it is (None: no limit)."""

    def __init__(self, file: TextIO) -> None:
        terminal = file.isatty()
        self.colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.width = shutil.get_terminal_size().columns if terminal else None

    def paint(self, text: str, colour: str) -> str:
        """Return text in a colour; one of red, green, yellow, blue, bold, dim."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colours and text else text

    def state(self, text: str) -> str:
        """Return the name of a state in the colour that says how good it is."""
        return self.paint(text, _STATES[text]) if text in _STATES else text


def clean(value: object) -> str:
    """Return a value as text that cannot move the cursor or change colours; None is a dash."""
    return "-" if value is None else _CONTROLS.sub("", _ESCAPES.sub("", str(value)))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], style: Style) -> str:
    """Return aligned columns. On a terminal the last one ends with the line."""
    lines = [list(headers), *([clean(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for number, line in enumerate(lines):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        text = cut("  ".join(padded).rstrip(), style)
        texts.append(style.paint(text, "bold") if number == 0 else _paint_states(text, line, style))
    return "\n".join(texts)


def cut(text: str, style: Style) -> str:
    """Shorten plain text to the width of the terminal."""
    return text if style.width is None or len(text) <= style.width else f"{text[: style.width - 1]}…"


def duration(seconds: float) -> str:
    """Return a duration in the two units that matter: 0.4 s, 12 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = int(seconds)
    for unit, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= unit:
            return f"{total // unit} {name} {total % unit // small} {small_name}"
    return f"{total} s"


def size(count: float) -> str:
    """Return a number of bytes as 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Return plain data as JSON; bytes are shown as text."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_text_of)


def to_yaml(value: Any) -> str:
    """Return plain data as YAML, in block style; bytes are shown as text."""
    import yaml  # noqa: PLC0415 only this form pays for it

    class Dumper(yaml.SafeDumper):
        pass

    def scalar(dumper: yaml.SafeDumper, item: str | bytes) -> yaml.ScalarNode:
        text = _text_of(item)
        style = '"' if _QUOTED.search(text) else "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)

    Dumper.add_representer(str, scalar)
    Dumper.add_representer(bytes, scalar)
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text.removesuffix("...\n").removesuffix("\n")


def _text_of(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _paint_states(text: str, cells: Sequence[str], style: Style) -> str:
    """Colour the cells of a line that are states; done last, since colours have no width."""
    for cell in cells:
        if cell in _STATES and style.colours:
            text = re.sub(rf"(?<!\S){re.escape(cell)}(?!\S)", style.state(cell), text, count=1)
    return text
