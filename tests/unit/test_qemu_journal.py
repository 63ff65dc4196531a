"""What a node said, and who waits for it: over boots, resets and the machine's end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from qemu.errors import MachineStoppedError, MachineTimeoutError
from qemu.journal import Journal
from qemu.until import condition

if TYPE_CHECKING:
    from collections.abc import Callable

    from initd.api.types import VersionInfo

READY = condition("ready")


def version(boot_id: str) -> VersionInfo:
    return {"version": "1", "kernel": "6", "python": "3", "boot_id": boot_id, "image": None}


def ready(seq: int) -> dict[str, Any]:
    return {"seq": seq, "kind": "node", "phase": "running", "ready": True}


def phase(seq: int) -> dict[str, Any]:
    return {"seq": seq, "kind": "phase", "name": f"p{seq}", "status": "done"}


@pytest.fixture
def journal() -> Journal:
    made = Journal()
    made.answered(version("one"))
    return made


def later(action: Callable[[], object]) -> None:
    threading.Timer(0.02, action).start()


def test_what_was_said_is_found_and_what_will_be_is_waited_for(journal: Journal) -> None:
    journal.event(phase(1))
    later(lambda: journal.event(ready(2)))
    assert journal.wait_for(READY, "ready", 0, 5)["seq"] == 2
    assert journal.wait_for(READY, "ready", 0, 0)["seq"] == 2


def test_since_leaves_out_what_was_said_before(journal: Journal) -> None:
    journal.event(ready(1))
    with pytest.raises(MachineTimeoutError, match="ready: did not come"):
        journal.wait_for(READY, "ready", journal.last_seq, 0.01)
    later(lambda: journal.event(ready(2)))
    assert journal.wait_for(READY, "ready", 1, 5)["seq"] == 2


def test_events_that_are_told_twice_count_once(journal: Journal) -> None:
    for seq in (1, 2, 1, 2, 3):
        journal.event(phase(seq))
    journal.event({"dropped": 4})
    assert [event["seq"] for event in journal.history()[0]] == [1, 2, 3]


def test_a_ready_of_the_boot_before_the_reset_is_not_this_boots(journal: Journal) -> None:
    journal.event(ready(5))
    journal.reset()
    journal.event(phase(6))  # still on its way when the machine was reset
    with pytest.raises(MachineTimeoutError):
        journal.wait_for(READY, "ready", 0, 0.01)
    assert journal.answered(version("two")) == 0
    journal.event(ready(1))
    assert journal.wait_for(READY, "ready", 0, 1)["seq"] == 1
    assert [[event["seq"] for event in boot] for boot in journal.history()] == [[5], [1]]


def test_the_same_boot_goes_on_where_it_was(journal: Journal) -> None:
    journal.event(phase(1))
    assert journal.answered(version("one")) == 1
    assert len(journal.history()) == 1
    assert journal.boots == 1


def test_a_boot_counts_once_it_answers(journal: Journal) -> None:
    journal.reset()  # of a kernel that then fails before its PID 1 speaks,
    journal.reset()  # and restarts
    assert journal.boots == 1
    journal.answered(version("two"))  # and says nothing
    journal.answered(version("three"))
    assert journal.boots == 3


def test_an_iterator_goes_on_into_the_next_boot(journal: Journal) -> None:
    journal.event(phase(1))
    events = journal.events(0, 5)
    assert next(events)["seq"] == 1
    journal.reset()
    journal.answered(version("two"))
    journal.event(ready(1))
    assert next(events) == ready(1)


def test_the_next_boot_is_one_that_answers(journal: Journal) -> None:
    with pytest.raises(MachineTimeoutError):
        journal.wait_boot("one", 0.01)
    journal.reset()
    with pytest.raises(MachineTimeoutError):
        journal.wait_boot("none", 0.01)
    later(lambda: journal.answered(version("two")))
    assert journal.wait_boot("one", 5) == "two"


def test_the_machines_end_is_told_after_what_came_before_it(journal: Journal) -> None:
    journal.event(phase(1))
    events = journal.events(0, 60)
    later(lambda: journal.stop("QEMU ended with status 1"))
    assert next(events)["seq"] == 1
    with pytest.raises(MachineStoppedError, match="status 1"):
        next(events)
    with pytest.raises(MachineStoppedError, match="status 1"):
        journal.wait_boot("one", 60)
