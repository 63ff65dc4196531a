"""What PID 1 does with its signals."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from initd import init, native, shutdown


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing but signals: `queue` are those that wait, `asked` what was asked for, `reaped` counts."""
    made = SimpleNamespace(queue=[], asked=[], reaped=0, node=SimpleNamespace())

    def read(_fd: int) -> native.SignalInfo | None:
        return made.queue.pop(0) if made.queue else None

    def reap() -> bool:
        made.reaped += 1
        return False

    made.node.reaper = SimpleNamespace(reap=reap)
    monkeypatch.setattr(native, "read_signal", read)
    monkeypatch.setattr(shutdown, "request", lambda _node, action, by: made.asked.append((action, by)))
    return made


def test_a_request_names_its_sender_and_children_are_reaped(turn: Any) -> None:
    turn.queue += [native.SignalInfo(signal.SIGCHLD, 7, 0, 0), native.SignalInfo(signal.SIGINT, 0, 0, 0)]
    turn.queue += [native.SignalInfo(signal.SIGRTMIN + 4, 9, 0, 0)]
    init._on_signal(turn.node, 3)
    assert turn.asked == [("reboot", "Ctrl-Alt-Del"), ("shutdown", "signal SIGRTMIN+4, from pid 9")]
    assert turn.reaped == 1


def test_a_request_that_fails_does_not_keep_children_from_being_reaped(
    turn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_what: object, **_by: object) -> None:
        raise MemoryError

    monkeypatch.setattr(shutdown, "request", fail)
    turn.queue += [native.SignalInfo(signal.SIGINT, 0, 0, 0)]
    with pytest.raises(MemoryError):
        init._on_signal(turn.node, 3)
    assert turn.reaped == 1


def test_a_turn_reads_no_more_signals_than_its_share(turn: Any) -> None:
    turn.queue += [native.SignalInfo(signal.SIGRTMIN + 5, 9, 0, 0)] * (init.SIGNALS + 1)
    init._on_signal(turn.node, 3)
    assert (len(turn.queue), turn.reaped) == (1, 1)
    init._on_signal(turn.node, 3)
    assert (len(turn.asked), turn.reaped) == (init.SIGNALS + 1, 2)
