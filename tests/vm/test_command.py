"""`python -m qemu` and initctl as a person runs them: processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu import vms
from qemu.plugin import READY_TIMEOUT
from tests.vm.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("image")  # built before a deadline runs
ROOT = Path(__file__).parents[2]
NAME = f"command-{os.getpid()}"
OFF_SECONDS = 60.0


def run(module: str, *words: str, timeout: float = 60.0) -> tuple[int, str, str]:
    """Run `python -m module words`; return its exit code, output and errors."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def started(output: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m qemu words` in a group of processes of its own, as a shell does; killed if it does not end."""
    command = [sys.executable, "-m", "qemu", *words]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what ignores it passes that on
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, process_group=0)
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_node_that_is_watched_until_ctrl_c(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with started(output, "boot", "--live", "--name", NAME) as boot:

        def said(text: str) -> bool:
            assert boot.poll() is None, output.read_text()
            return text in output.read_text()

        until("ready", lambda: said("\nready after "), READY_TIMEOUT)
        assert f"VM {NAME} runs (" in output.read_text()
        assert " mounts: done, " in output.read_text()
        code, status, errors = run("initd.client.initctl", "--vm", NAME, "status")
        assert (code, errors) == (0, "")
        assert "  running  ready  " in status
        assert "configuration from built-in default" in status
        code, answer, errors = run("initd.client.initctl", "--vm", NAME, "service", "restart", "kubelet")
        assert (code, answer, errors) == (0, "restarting\n", "")
        until("the live view", lambda: said("kubelet: restarting"), 30.0)
        os.killpg(boot.pid, signal.SIGINT)
        code = boot.wait(OFF_SECONDS)
    assert output.read_text().endswith(f"\npowering VM {NAME} off; Ctrl-C again pulls the plug\nVM {NAME} is off\n"), (
        output.read_text()
    )
    assert code == 0
    assert not (vms.directory() / NAME).exists()


def test_a_node_that_is_kept_until_it_is_stopped() -> None:
    try:
        code, output, errors = run(
            "qemu", "boot", "--keep", "--output", "json", "--name", NAME, timeout=READY_TIMEOUT + 30.0
        )
        assert code == 0, (output, errors)
        boot = json.loads(output)
        assert (boot["name"], boot["reached"], boot["verdict"], boot["error"]) == (NAME, True, "echoed", None)
        phases = {phase["name"]: phase for phase in boot["phases"]}
        assert phases["mounts"]["status"] == phases["kubelet"]["status"] == "done"
        assert all(phase["milliseconds"] >= 0 for phase in phases.values())
        assert NAME in run("qemu", "list")[1].split()
        code, output, errors = run("qemu", "boot", "--keep", "--name", NAME)
        assert (code, output) == (1, "")
        assert errors.startswith(f"qemu: a machine named {NAME} runs already; ")
        assert NAME in run("qemu", "list")[1].split(), "the second did no harm to the first"
    finally:
        stopped = run("qemu", "stop", NAME, timeout=OFF_SECONDS + 30.0)
    assert stopped == (0, "", "")
    assert NAME not in run("qemu", "list")[1].split()
    code, _, errors = run("qemu", "stop", NAME)
    assert code == 1
    assert f"no VM named {NAME}" in errors


def test_an_event_that_does_not_come_in_time_is_exit_code_1() -> None:
    code, output, errors = run("qemu", "boot", "--name", NAME, "--until", "phase:nosuch", "--timeout", "1")
    assert code == 1
    assert f"VM {NAME} runs (" in output
    assert errors.endswith("qemu: phase:nosuch: did not come in 1 s\n")
    assert not (vms.directory() / NAME).exists()
