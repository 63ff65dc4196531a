"""A worker as a real process: a fork of process 1, which speaks with it over its link."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from initd import native, services
from initd.supervise.states import State
from initd.supervise.workers import Worker
from tests.namespace.supervision import replaced
from tests.unit.api_support import until
from tests.unit.core_support import states

if TYPE_CHECKING:
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
