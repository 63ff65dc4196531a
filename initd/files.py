"""Small files that come and go: those of /proc, /sys and the cgroups; and those with more to come."""


def read(path: str) -> str:
    """The text of a file without white space around it; "" for one that is not there (any more) or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


async def readable(fd: int) -> None:
    """Return when `fd` is readable or has an error to be read."""
    import asyncio  # noqa: PLC0415 the loop runs now

    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
