"""A machine's name, which names folders that are made and removed; the signals of the command."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from qemu.__main__ import main
from qemu.errors import HarnessError
from qemu.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["default", "test-1_2.x", "0", "a" * 64])
def test_a_name(name: str) -> None:
    assert Machine(name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "x/y", ".x", "-x", "x y", "x\n", "é", "a" * 65])
def test_no_name(name: str) -> None:
    with pytest.raises(HarnessError) as caught:
        Machine(name)
    assert caught.value.message.startswith(f"found VM name {name!r}, expected ")


@pytest.mark.parametrize("words", [["boot", "--kernel", "/nowhere", "--name", "../x"], ["stop", "../x"]])
def test_a_command_with_no_name_is_one_line_and_touches_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("qemu: found VM name '../x', expected ")
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_is_a_ctrl_c_unless_nohup_says_otherwise(
    ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang_up(_options: object) -> int:
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGHUP)  # does not end the clean-up
        return 0

    monkeypatch.setattr("qemu.__main__._list", hang_up)
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert main(["list"]) == (0 if ignored else 130)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hangup)
