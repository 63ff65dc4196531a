"""Artefacts by the content of what they are made from: CACHE/KIND/KEY, complete or not there at all.

An entry is built beside its place and renamed into it after a sync, so that an interrupted build or a power failure
leaves no entry, never half of one. A lock per entry makes a second build wait for the first instead of racing it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs.progress import BuildError, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEEP_SECONDS = 3600  # an entry used this recently may still be open in another build or a virtual machine


def directory() -> Path:
    """The cache of this user, made when it is missing. Raises BuildError if it cannot be."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "initd"
    try:
        for name in ("vms", "clusters"):  # the harness', made here as tests that run as root would make them root's
            (path / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None
    return path


def _unusable(cache: Path, error: OSError) -> BuildError:
    return BuildError(
        f"the cache {cache} cannot be used: {error}", "set XDG_CACHE_HOME to a folder that you may write to"
    )


def files_below(path: Path) -> list[Path]:
    """Every file and link below `path` in a fixed order, without what Python, editors and host.py leave behind."""
    if not path.is_dir():
        return [path]
    found = []
    for parent, names, files in os.walk(path):
        names[:] = sorted(name for name in names if name != "__pycache__" and not name.startswith("."))
        kept = (name for name in sorted(files) if not name.startswith(".") and not name.endswith((".pyc", ".so")))
        found += [Path(parent, name) for name in kept]
    return found


def key(*inputs: Path | str) -> str:
    """A name for what is made from `inputs`: text counts as itself, a path as the content and mode of all it holds."""
    total = hashlib.sha256()
    for entry in inputs:
        if isinstance(entry, str):
            total.update(b"text\0" + entry.encode() + b"\0")
            continue
        for file in files_below(entry):
            name = file.relative_to(entry).as_posix()
            if file.is_symlink():
                total.update(f"link\0{name}\0{file.readlink()}\0".encode())
            elif file.exists():
                executable = bool(file.stat().st_mode & 0o100)
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                total.update(f"file\0{name}\0{executable}\0{content}\0".encode())
    return total.hexdigest()[:24]


def remove(path: Path) -> None:
    """Remove a file or tree, read-only directories included; nothing happens when it is not there."""
    if path.is_dir() and not path.is_symlink():
        for parent, _, _ in os.walk(path):
            Path(parent).chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Cache:
    """The cache below `root`; says through `progress` what it builds and what it waits for."""

    def __init__(self, progress: Progress, root: Path | None = None) -> None:
        self.progress = progress
        self.root = root or directory()

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock `name` (a path below the cache); it ends with the process, however that ends."""
        path = self.root / "locks" / name.replace("/", ".")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Read-only, since root may have made it in this user's cache (tests run as root).
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unusable(self.root, error) from None
        with os.fdopen(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.progress.note(f"another build makes {name}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def entry(self, kind: str, name: str, what: str, expected: float, build: Callable[[Path], None]) -> Path:
        """The entry KIND/NAME. If it is not there, `build` makes it at the path it is given (file or directory).

        `what` and `expected` (seconds) are for the progress line. Raises what `build` raises.
        """
        path = self.root / kind / name
        if path.exists():
            with suppress(PermissionError):  # made by root in this user's cache; only trim() would like to know
                os.utime(path)
            return path
        with self.locked(f"{kind}/{name}"):
            if path.exists():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{name}.partial")
            remove(temporary)
            with self.progress.step(kind, what, expected):
                try:
                    build(temporary)
                    os.sync()
                    temporary.rename(path)
                finally:
                    remove(temporary)
        return path

    def trim(self, kind: str, keep: int) -> None:
        """Remove all but the `keep` entries of `kind` used last, and what killed builds left.

        Nothing used within the last hour is removed.
        """
        folder = self.root / kind
        with suppress(OSError):  # of another user's, or that another clone is removing: it costs space, no more
            entries = sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in [*entries[keep:], *folder.glob(".*.partial")]:
                if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                    remove(path)

    def require_space(self, needed: int, purpose: str) -> None:
        """Raise BuildError unless `needed` bytes are free below the cache."""
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise BuildError(
                f"{purpose} needs {needed / 1e9:.1f} GB below {self.root}, {free / 1e9:.1f} GB are free",
                "free some space or set XDG_CACHE_HOME to a larger file system",
            )


def run(
    argv: list[str], *, hint: str, env: dict[str, str] | None = None, cwd: Path | None = None, text: str = ""
) -> str:
    """Run a command with `text` as its standard input and return its standard output.

    Raises BuildError with the last lines of its output and `hint`.
    """
    try:
        result = subprocess.run(argv, check=False, capture_output=True, text=True, env=env, cwd=cwd, input=text)
    except FileNotFoundError as error:
        raise BuildError(
            f"{error.filename} is missing", "run `make` or `python3 rootfs/host.py`, which installs it"
        ) from None
    if result.returncode != 0:
        tail = " | ".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-6:])
        raise BuildError(f"{' '.join(argv[:4])} ended with {result.returncode}: {tail}", hint)
    return result.stdout
