"""System calls that only tests make, through the same extension as initd's own; each raises OSError that names it."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from initd._native import lib
from initd.native import _checked, _mask, _text

if TYPE_CHECKING:
    from collections.abc import Collection


class Namespace(IntFlag):
    """Kinds of namespaces, for `Spawn.namespaces`, `setns` and `unshare`."""

    MOUNT = lib.CLONE_NEWNS
    PID = lib.CLONE_NEWPID
    NET = lib.CLONE_NEWNET
    UTS = lib.CLONE_NEWUTS
    IPC = lib.CLONE_NEWIPC


class Prctl(IntEnum):
    """Options of prctl(2) that take one number."""

    PDEATHSIG = lib.PR_SET_PDEATHSIG
    NO_NEW_PRIVS = lib.PR_SET_NO_NEW_PRIVS


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root mount and put the old one at `put_old`."""
    _checked(lib.initd_pivot_root(_text("new_root", new_root), _text("put_old", put_old)), "pivot_root", new_root)


def prctl_set(option: int, value: int) -> None:
    """prctl(2) for an option that takes one number."""
    _checked(lib.initd_prctl(option, value), f"prctl {option}")


def drop_capabilities(keep: Collection[int]) -> None:
    """Keep only these capabilities, for good: bounding, permitted, effective; the other sets are emptied."""
    _checked(lib.initd_drop_capabilities(_mask(keep)), "drop_capabilities")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace of a descriptor (/proc/PID/ns/*, or a pidfd) of a kind (CLONE_NEW*; 0: any)."""
    _checked(lib.setns(fd, kind), "setns")


def unshare(kinds: Namespace) -> None:
    """Leave the shared namespaces of these kinds for new ones."""
    _checked(lib.unshare(int(kinds)), "unshare")
