"""How initctl writes: aligned tables, JSON, YAML, colour where a person looks.

Text that came from a node is never trusted with the terminal: control characters are taken out before it is shown.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
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
_PLAIN = re.compile(r"[A-Za-z/][\w./@+-]*( [\w./@+-]+)*", re.ASCII)
_NOT_PLAIN = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # YAML 1.1 reads these as something else
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # in YAML, beside what JSON escapes anyway


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
    """Return plain data as YAML, in block style, with JSON's strings where a plain one could be misread."""
    return "\n".join(_yaml(value))


def _yaml(value: Any) -> Iterator[str]:
    match value:
        case dict() if value:
            for key, inner in value.items():
                if isinstance(inner, dict | list) and inner:
                    yield f"{_scalar(key)}:"
                    yield from ("  " * isinstance(inner, dict) + line for line in _yaml(inner))
                else:
                    yield f"{_scalar(key)}: {_scalar(inner)}"
        case list() if value:
            for inner in value:
                first, *rest = _yaml(inner)
                yield f"- {first}"
                yield from (f"  {line}" for line in rest)
        case _:
            yield _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bytes):
        value = _text_of(value)
    if isinstance(value, float):
        text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), str(value))
        return text if "." in text else text.replace("e", ".0e")  # 1e-05 is a string in YAML 1.1
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_PLAIN:
        return value
    return _NOT_PRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _text_of(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _paint_states(text: str, cells: Sequence[str], style: Style) -> str:
    """Colour the cells of a line that are states; done last, since colours have no width."""
    for cell in cells:
        if cell in _STATES and style.colours:
            text = re.sub(rf"(?<!\S){re.escape(cell)}(?!\S)", style.state(cell), text, count=1)
    return text
