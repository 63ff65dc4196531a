"""What becomes of a process 1 that fails: another life, or rescue. lives.py is that process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
HERE = Path(__file__).parent


def lives(folder: Path, *each: str) -> list[str]:
    """The lines that process 1 of a namespace prints while it lives so."""
    program = folder / "init"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "lives.py"} {program} "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", program],
        env={"PYTHONPATH": str(HERE.parents[1]), "PATH": os.environ["PATH"], "LIVES": " ".join(each)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    return lines


def test_a_fault_begins_another_life_that_is_told_why(tmp_path: Path) -> None:
    first, second, report, end = lives(tmp_path, "crash", "nothing")
    assert (first, second, end) == ("life 1 resuming=False", "life 2 resuming=True", "end")
    assert report.startswith("Fatal Python error: Segmentation fault |")
    assert "in crash" in report, "where Python was"
    assert "SIGSEGV at instruction 0x" in report
    assert "address 0x0, code 1" in report, "where C was"
    assert re.search(r"Native stack \(most recent call first\): .*libffi.*Py", report)


def test_a_fault_while_a_fault_is_reported_begins_another_life_too(tmp_path: Path) -> None:
    *_, report, end = lives(tmp_path, "crash-twice", "nothing")
    assert "SIGSEGV at instruction 0x" in report
    assert end == "end"


def test_children_descriptors_and_pending_signals_live_on(tmp_path: Path) -> None:
    *_, kept, lost, pending, child, end = lives(tmp_path, "with-a-child", "look")
    assert kept == "still here"
    assert lost == "lost is closed"
    assert pending == "pending: {<Signals.SIGUSR1: 10>}"
    assert child == "child: -9"
    assert end == "end"


def test_two_faults_are_survived_and_three_in_a_minute_are_rescues(tmp_path: Path) -> None:
    assert lives(tmp_path, "crash", "abort", "nothing")[-1] == "end"
    lines = lives(tmp_path, "crash", "abort", "restart", "nothing")
    assert [line for line in lines if line.startswith("life")] == [
        "life 1 resuming=False",
        "life 2 resuming=True",
        "life 3 resuming=True",
    ]
    assert lines[-1] == "rescued: an exception at the top"


def test_a_life_that_fails_before_it_has_come_far_is_the_last(tmp_path: Path) -> None:
    lines = lives(tmp_path, "restart", "crash-early", "nothing")
    assert "an exception at the top" in lines[2]
    assert lines[-1].startswith("rescued: SIGSEGV at instruction 0x")


def test_a_fault_of_a_fork_and_a_signal_that_was_sent_are_none_of_ours(tmp_path: Path) -> None:
    assert lives(tmp_path, "others") == ["life 1 resuming=False", "fork: -11", "survived", "end"]
