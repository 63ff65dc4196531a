"""The keep list: which files of the unpacked packages stay."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def _regex(glob: str) -> str:
    parts = (re.escape(part).replace(r"\*", "[^/]*") for part in glob.split("**"))
    return ".*".join(parts)


class KeepList:
    """Decides paths (relative, with slashes) by the last line that matches: a glob keeps, `!` before it drops.

    `*` stands for anything within one component, `**` for anything. What no line matches is dropped.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [(not line.startswith("!"), re.compile(_regex(line.removeprefix("!")))) for line in lines]
        self._used = [False] * len(self._rules)
        self._lines = list(lines)

    def keeps(self, path: str) -> bool:
        """Whether `path` stays."""
        kept = False
        for index, (keep, regex) in enumerate(self._rules):
            if regex.fullmatch(path):
                kept = keep
                self._used[index] = True
        return kept

    def unused(self) -> list[str]:
        """Keeping lines that matched no path so far: something the list promises is not there."""
        return [
            line for line, used in zip(self._lines, self._used, strict=True) if not used and not line.startswith("!")
        ]
