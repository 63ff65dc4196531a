"""The one error of the configuration, light enough for PID 1's early part."""


class ConfigError(Exception):
    """A configuration that cannot be used: str() is one line with source, key, what was found and what was expected.

    key is the dotted path ("network.interfaces[0].mtu"), or "" where the trouble is with the whole text.
    """

    def __init__(self, source: str, problem: str, key: str = "") -> None:
        super().__init__(": ".join(part for part in (source, key, problem) if part))
        self.source = source
        self.key = key
        self.problem = problem


class MismatchError(ValueError):
    """Raised by a check of one value; at is the rest of the path below that value (".metadata.name"), or ""."""

    def __init__(self, expected: str, found: str, at: str = "") -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.at = at
