"""Who is told of the end of which child."""

from __future__ import annotations

import signal

import pytest

from initd import native
from initd.native import Exit
from initd.supervise.reap import BATCH, CLD_DUMPED, CLD_EXITED, CLD_KILLED, describe
from tests.unit.core_support import World


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (CLD_EXITED, 0, "exited with code 0"),
        (CLD_EXITED, 255, "exited with code 255"),
        (CLD_KILLED, signal.SIGKILL, "killed by SIGKILL"),
        (CLD_DUMPED, signal.SIGSEGV, "killed by SIGSEGV (core dumped)"),
        (CLD_KILLED, 45, "killed by signal 45"),
    ],
)
def test_an_end_in_words(code: int, status: int, words: str) -> None:
    assert describe(Exit(7, 0, code, status)) == words


def test_children_are_told_and_orphans_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    told: list[Exit] = []
    world.reaper.watch(7, told.append)
    world.kernel.zombies += [Exit(6, 0, CLD_EXITED, 0), Exit(7, 0, CLD_EXITED, 3), Exit(8, 0, CLD_EXITED, 0)]
    assert not world.reaper.reap()
    assert [end.status for end in told] == [3]
    assert world.reaper.orphans == 2
    world.kernel.zombies.append(Exit(7, 0, CLD_EXITED, 0))  # the pid was taken again, by an orphan
    world.reaper.reap()
    assert (len(told), world.reaper.orphans) == (1, 3)


def test_one_fault_does_not_stop_the_reaping(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    told: list[Exit] = []

    def fail(_end: Exit) -> None:
        raise RuntimeError("a fault")

    world.reaper.watch(7, fail)
    world.reaper.watch(8, told.append)
    world.kernel.zombies += [Exit(7, 0, CLD_EXITED, 0), Exit(8, 0, CLD_EXITED, 0)]
    world.reaper.reap()
    assert len(told) == 1


def test_a_flood_is_reaped_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    left = [BATCH + 1]

    def wait_any() -> int | None:
        return 9 if left[0] else None

    def wait_pid(pid: int) -> Exit:
        left[0] -= 1
        return Exit(pid, 0, CLD_EXITED, 0)

    monkeypatch.setattr(native, "wait_any", wait_any)
    monkeypatch.setattr(native, "wait_pid", wait_pid)
    assert world.reaper.reap()
    assert left == [1]
    assert not world.reaper.reap()
    assert left == [0]
