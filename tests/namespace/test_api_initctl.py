"""initctl as its users start it: a process of its own, a shell that completes it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from initd.client import completion
from tests.unit.client_support import serving

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = 30
INITCTL = [sys.executable, "-m", "initd.client.initctl"]


def run(*words: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=options or None)


def test_the_client_needs_nothing_of_pid_1_and_little_of_the_library() -> None:
    code = "import sys, initd.client.initctl, initd.client.live, initd.client.completion; print(*sys.modules)"
    modules = set(run(sys.executable, "-c", code).stdout.split())
    ours = {name for name in modules if name.startswith("initd") and not name.startswith("initd.client")}
    assert "initd.api.protocol" in ours
    assert ours <= {"initd", "initd.api", "initd.api.protocol", "initd.api.types"}
    assert not {"asyncio", "structlog", "msgspec", "_cffi_backend", "dataclasses"} & modules


def test_a_pipe_that_closes_early_is_no_traceback(tmp_path: Path) -> None:
    with serving(tmp_path) as node:
        done = run("sh", "-c", f"{' '.join(INITCTL)} events -f --socket {node.path} | true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "offered"), [(["se"], "services service"), (["service", "r"], "restart"), (["--output", "j"], "json")]
)
def test_bash_completes(words: list[str], offered: str) -> None:
    script = f'initctl() {{ {" ".join(INITCTL)} "$@"; }}; {completion.script("bash")}'
    test = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _initctl; echo "${COMPREPLY[*]}"'
    done = run("bash", "-c", f"{script}\n{test}", "bash", "initctl", *words)
    assert done.stderr == ""
    assert done.stdout == f"{offered}\n"
