"""What files there are: their types, modes and owners. Nothing is read and nothing is followed."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator

from initd import native
from initd.api.protocol import ApiError, Code
from initd.api.registry import Call, Role, method
from initd.api.types import FileInfo
from initd.mounts import TABLE, after_var, on_state
from initd.native import Resolve

BATCH = 100  # files between two turns of others
_TYPES = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
}  # fmt: skip
# Whatever a pod mounted may never answer (NFS, FUSE), so only initd's own file systems are entered.
_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE = Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS | Resolve.NO_XDEV


@method("files", Role.OPERATOR)
async def files(_call: Call, path: str) -> AsyncIterator[FileInfo]:
    """The file at an absolute path, or each in the directory there, mount points left out; no link is followed."""
    descriptor = _open(path)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            yield _info(os.path.basename(path), descriptor)
            return
        names = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
        try:
            with os.scandir(names) as entries:
                for number, entry in enumerate(entries, 1):
                    if found := _entry(descriptor, entry.name):
                        yield found
                    if number % BATCH == 0:
                        await asyncio.sleep(0)
        finally:
            os.close(names)
    finally:
        os.close(descriptor)


def _entry(directory: int, name: str) -> FileInfo | None:
    """One of a directory's; None if it is gone, or where something else is mounted, which is not even asked."""
    try:
        descriptor = native.openat2(directory, name, _FLAGS, _RESOLVE)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EXDEV}:
            return None
        raise
    try:
        return _info(name, descriptor)
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    """A descriptor of what is there (O_PATH). Raises ApiError."""
    if not path.startswith("/") or "\0" in path:
        raise ApiError(Code.INVALID_ARGUMENT, f"files: found path {path!r}, expected an absolute one")
    path = os.path.normpath(path).replace("//", "/")
    above = [row.target for row in (*TABLE, *after_var(), *on_state("", "")) if f"{path}/".startswith(f"{row.target}/")]
    base = max(above, key=len, default="/")
    try:
        directory = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return native.openat2(directory, os.path.relpath(path, base), _FLAGS, _RESOLVE)
        finally:
            os.close(directory)
    except FileNotFoundError:
        raise ApiError(Code.NOT_FOUND, f"files: no file {path!r}") from None
    except OSError as error:
        raise ApiError(Code.FAILED_PRECONDITION, f"files: {path!r} cannot be looked at: {error.strerror}") from None


def _info(name: str, descriptor: int) -> FileInfo:
    status = os.fstat(descriptor)
    return {
        "name": name,
        "type": _TYPES.get(stat.S_IFMT(status.st_mode), "other"),
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size_bytes": status.st_size,
        "modified": status.st_mtime,
    }
