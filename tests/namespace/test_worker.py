"""A worker as a real process: a fork of process 1, which speaks with it over its link."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

from initd import native, services
from initd.supervise.states import State
from initd.supervise.workers import Worker
from qemu.cluster import pki
from tests.namespace.supervision import replaced
from tests.unit.api_support import until
from tests.unit.core_support import states

if TYPE_CHECKING:
    from pathlib import Path

    from tests.namespace.supervision import Init, Scene


def test_one_that_is_stopped_is_replaced_and_one_that_answers_is_not(scene: Scene) -> None:
    async def act(node: Init) -> list[str]:
        logging.getLogger().handlers.clear()  # pytest's, of a file that the fork has closed
        worker = Worker(services.worker("containers")._replace(cgroup="probe"), node.node.events, node.node.reaper)
        worker.attach(asyncio.get_running_loop())
        worker.start()
        await until(lambda: worker.state is State.RUNNING)
        await worker.ping(20)
        assert worker.process is not None
        native.pidfd_send_signal(worker.process.pidfd, signal.SIGSTOP)
        before = worker.process.pid
        await worker.ping(0.1)
        await until(lambda: replaced(worker, before) and worker.state is State.RUNNING)
        await worker.ping(20)
        return states(worker)

    assert scene(act) == ["starting", "running", "failing", "backoff", "starting", "running"]


def test_the_cluster_worker_has_ssl_though_process_1_has_none(scene: Scene, tmp_path: Path) -> None:
    authority = base64.b64encode(pki.Authority(tmp_path).certificate.read_bytes()).decode()
    cluster = {"server": "https://127.0.0.1:6443", "certificate-authority-data": authority}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps({"clusters": [{"cluster": cluster}], "users": [{"user": {"token": "a.b"}}]}))
    config = {"kubeconfig": str(kubeconfig), "name": "node-1", "boot_id": "1234", "max_unavailable": 1}

    async def act(node: Init) -> list[Any]:
        logging.getLogger().handlers.clear()
        sys.modules["ssl"] = None  # type: ignore[assignment] # as in initd.init
        told: list[Any] = []
        worker = Worker(services.worker("cluster")._replace(cgroup="probe"), node.node.events, node.node.reaper)
        worker.attach(asyncio.get_running_loop())
        worker.on("state", told.append)
        worker.on_start = lambda: worker.tell("configure", config, None)
        worker.start()
        await until(lambda: told)
        worker.retire("the end")
        await until(lambda: worker.state is State.DOWN)
        return told

    (state,) = scene(act)
    reason = "API server https://127.0.0.1:6443: unreachable: Network is unreachable"
    assert state == {"server": cluster["server"], "joined": False, "ready": False, "cordoned": False, "reason": reason}
