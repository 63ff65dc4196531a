"""Names that are taken: FOLDER/NAME belongs to the process that holds the lock FOLDER/.NAME.lock, until that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from qemu.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def claim(folder: Path, name: str, cleanup: contextlib.ExitStack) -> bool:
    """Take a name until `cleanup`; False if somebody else has it. Raises HarnessError."""
    path = folder / f".{name}.lock"
    lock = _lock(path)
    if lock is None:
        return False
    cleanup.callback(os.close, lock)
    cleanup.callback(path.unlink, missing_ok=True)
    return True


def sweep(folder: Path, remove: Callable[[str], None]) -> None:
    """Call remove(name) for each name in `folder` whose process was killed before it could do so."""
    for path in folder.glob("[!.]*"):
        if (folder / f".{path.name}.lock").exists():  # nothing that was made without one is ours to remove
            with contextlib.suppress(HarnessError), contextlib.ExitStack() as cleanup:
                if claim(folder, path.name, cleanup):
                    remove(path.name)


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, None if somebody else does. The holder removes the file when done."""
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HarnessError(f"{path} cannot be opened: {error.strerror}", "remove it, or use another name") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass  # the holder before us removed it between our open and our lock: what we hold locks nothing
        os.close(lock)
