"""`make cluster` as a person runs it: what it prints can be used, and nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from qemu import disks
from tests.vm.conftest import until
from tests.vm.test_command import started

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("image")]
JOIN, END = 240.0, 60.0


def test_a_cluster_that_is_tried_and_ended_by_ctrl_c(tmp_path: Path) -> None:
    output, name = tmp_path / "output", f"command-{os.getpid()}"
    with started(output, "cluster", "--nodes", "1", "--name", name) as command:

        def said(pattern: str) -> re.Match[str] | None:
            assert command.poll() is None, output.read_text()
            return re.search(pattern, output.read_text())

        kubeconfig = until("a kubeconfig", lambda: said(r"export KUBECONFIG=(\S+)"), JOIN)[1]
        kubectl = until("a kubectl", lambda: said(r"alias kubectl=(\S+)"), JOIN)[1]
        until("a node that is ready", lambda: said(r"node node-1: ready"), JOIN)
        environment = {**os.environ, "KUBECONFIG": kubeconfig}
        shown = subprocess.run([kubectl, "get", "nodes"], env=environment, capture_output=True, text=True, check=True)
        assert re.search(r"^node-1 +Ready ", shown.stdout, re.MULTILINE)
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait(END) == 0, output.read_text()
    assert not (disks.cache() / "clusters" / name).exists()
    left = subprocess.run(["pgrep", "-f", f"clusters/{name}/"], capture_output=True, text=True, check=False).stdout
    assert left == "", "processes that are left"
