"""What is known of the last boot's end."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from initd import shutdown, watchdog

if TYPE_CHECKING:
    from pathlib import Path

ASKED = 'Shutdown#1 Part1\n<6>[ 9.1] initd: {"event": "reboot, asked for by API, uid 0 pid 7", "level": "info"}\n'
RESCUE = "Shutdown#1 Part1\n<2>[ 9.1] initd rescue: power off, asked for by signal 38 from pid 9\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watchdog, "PSTORE", str(tmp_path))
    monkeypatch.setattr(watchdog, "STATUS", str(tmp_path / "bootstatus"))
    return tmp_path


@pytest.mark.parametrize(
    ("records", "status", "cause"),
    [
        ([], "0", None),
        ([], "32", "watchdog"),
        ([], "not a number", None),
        (["Panic#1 Part1\nKernel panic"], "32", "panic"),
        ([ASKED, "Panic#2 Part1\nKernel panic"], "0", "panic"),
        ([ASKED], "32", "reboot, asked for by API, uid 0 pid 7"),
        ([RESCUE], "0", "power off, asked for by signal 38 from pid 9"),
        (["Oops#1 Part1\nBUG: x"], "0x20", "watchdog"),
        ([ASKED + f"Emergency#1 Part1\n<2>[ 66.3] {watchdog.SOFTDOG}"], "0", "watchdog"),
        (["\xff\n"], "0", None),
    ],
)
def test_cause(store: Path, records: list[str], status: str, cause: str | None) -> None:
    (store / "bootstatus").write_text(status)
    for number, record in enumerate(records):
        (store / f"dmesg-erst-{number}").write_bytes(record.encode("latin-1"))
    found, log = watchdog.last_boot()
    assert found == cause
    assert bool(log) == bool(records)
    assert not list(store.glob("dmesg-*")), "the store has place for few"


def test_what_shutdown_says_last_is_found(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("initd.shutdown.log.info", said.append)
    monkeypatch.setattr("initd.shutdown.native.reboot", lambda _command: None)
    shutdown._finish(shutdown.Shutdown("shutdown", "the power button", 0.0))
    (store / "dmesg-1").write_text(said[-1])
    assert watchdog.last_boot()[0] == "shutdown, asked for by the power button"


def test_without_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PSTORE", "/nowhere")
    monkeypatch.setattr(watchdog, "STATUS", "/nowhere")
    assert watchdog.last_boot() == (None, None)


@pytest.mark.parametrize(
    ("answers", "seconds"), [([30], 30), ([OSError(), 90], 90), ([OSError(), OSError()], 10), ([0], 10)]
)
def test_one_that_is_armed_is_fed_whatever_it_says_of_its_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[int | OSError], seconds: int
) -> None:
    def ioctl(_fd: int, _request: int, _value: bytes) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer.to_bytes(4, sys.byteorder)

    (tmp_path / "watchdog0").touch()
    monkeypatch.setattr(watchdog, "DEVICE", str(tmp_path / "watchdog0"))
    monkeypatch.setattr("initd.watchdog.fcntl.ioctl", ioctl)
    fd, granted = watchdog.start(60)
    os.close(fd)
    assert granted == seconds
    assert not answers
