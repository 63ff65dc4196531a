"""What files there are: their types, modes and owners. Nothing is read and nothing is followed."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from initd import native
from initd.api.protocol import ApiError, Code
from initd.api.types import FileInfo
from initd.native import Resolve

MOST = 5000  # in a directory: an answer is one message
_TYPES = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
}  # fmt: skip
# Whatever a pod mounted may never answer (NFS, FUSE), so only initd's own file systems are entered.
_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE = Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS | Resolve.NO_XDEV


def files(base: str, path: str) -> list[FileInfo]:
    """The file at `path` on the file system mounted at `base`, or each in the directory there. Raises ApiError.

    Waits for the disk for as long as that takes.
    """
    try:
        with (
            _held(os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as top,
            _held(native.openat2(top, os.path.relpath(path, base), _FLAGS, _RESOLVE)) as found,
        ):
            if not stat.S_ISDIR(os.fstat(found).st_mode):
                return [_info(os.path.basename(path), found)]
            with (
                _held(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)) as listed,
                os.scandir(listed) as entries,
            ):
                names = [entry.name for entry in islice(entries, MOST + 1)]
            if len(names) <= MOST:
                return [entry for name in names if (entry := _entry(found, name))]
    except FileNotFoundError:
        raise ApiError(Code.NOT_FOUND, f"files: no file {path!r}") from None
    except OSError as error:
        raise ApiError(Code.FAILED_PRECONDITION, f"files: {path!r} cannot be looked at: {error.strerror}") from None
    raise ApiError(Code.RESOURCE_EXHAUSTED, f"files: {path!r} has more than {MOST} files")


@contextmanager
def _held(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _entry(directory: int, name: str) -> FileInfo | None:
    """One of a directory's; None if it is gone, or where something else is mounted, which is not even asked."""
    try:
        with _held(native.openat2(directory, name, _FLAGS, _RESOLVE)) as descriptor:
            return _info(name, descriptor)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EXDEV}:
            return None
        raise


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
