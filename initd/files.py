"""Small files that come and go: those of /proc, /sys and the cgroups."""


def read(path: str) -> str:
    """The text of a file without white space around it; "" for one that is not there (any more) or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
