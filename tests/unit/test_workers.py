"""PID 1's side of a worker; the test is the worker, at the other end of the socketpair."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from initd import native
from initd.api.protocol import ApiError, Code, Decoder, Notification, Request, Response, encode
from initd.supervise import workers
from initd.supervise.reap import CLD_KILLED
from initd.supervise.states import State
from initd.supervise.workers import LINK, Worker, spec
from tests.unit.api_support import until
from tests.unit.core_support import World, states

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MIB = 1 << 20


class Bench:
    """A worker of which the test plays each process: `links` are their ends, the newest last."""

    def __init__(self, patch: pytest.MonkeyPatch, idle_seconds: float = 0.0) -> None:
        self.world = World(patch)
        self.links: list[socket.socket] = []
        self.decoder = Decoder()
        spawn = self.world.kernel.spawn

        def run(what: native.Spawn) -> native.Child:
            child = spawn(what)
            self.links.append(socket.socket(fileno=os.dup(what.fds[LINK])))
            self.links[-1].setblocking(False)
            self.decoder = Decoder()
            return child

        patch.setattr(native, "spawn", run)
        self.worker = Worker(spec("probe", MIB), self.world.events, self.world.reaper, idle_seconds)

    async def attach(self) -> None:
        self.worker.attach(asyncio.get_running_loop())

    async def run(self) -> None:
        await self.attach()
        self.worker.start()
        await until(lambda: self.worker.state is State.RUNNING)

    async def asked(self) -> Request:
        """The next request that the worker is sent."""
        while True:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.links[-1], 1 << 16), 5)
            for message in self.decoder.feed(data):
                assert isinstance(message, Request)
                return message

    def say(self, message: Response | Notification) -> None:
        self.links[-1].send(encode(message))

    def die(self) -> None:
        """The worker's process is killed."""
        self.links[-1].close()
        self.world.end(self.worker, CLD_KILLED, 9)

    def close(self) -> None:
        self.worker.retire("end of the test")
        if self.worker.process is not None:
            self.world.end(self.worker)
        for link in self.links:
            link.close()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.worker.output.reader)
        os.close(self.worker.output.reader)
        os.close(self.worker.output.writer)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a scene with a worker."""

    def run(scene: Callable[[Bench], Coroutine[Any, Any, None]], idle_seconds: float = 0.0) -> None:
        async def whole() -> None:
            bench = Bench(monkeypatch, idle_seconds)
            try:
                await scene(bench)
            finally:
                bench.close()

        asyncio.run(whole())

    return run


async def failure(call: asyncio.Future[Any]) -> tuple[Code, str]:
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(call, 5)
    return caught.value.code, caught.value.message


def test_calls_are_answered_in_any_order(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        first = asyncio.ensure_future(bench.worker.call("links", "eth0", 1))
        one = await bench.asked()
        assert (one.method, one.params) == ("links", ["eth0", 1])
        second = asyncio.ensure_future(bench.worker.call("state"))
        two = await bench.asked()
        bench.say(Response(two.msgid, ["NOT_FOUND", "no such thing"], None))
        assert await failure(second) == (Code.NOT_FOUND, "no such thing")
        bench.say(Response(777, None, "an answer to nothing"))
        bench.say(Response(one.msgid, None, {"up": True}))
        assert await first == {"up": True}

    play(scene)


def test_a_worker_that_dies_fails_its_calls_and_is_replaced(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        starts: list[int] = []
        bench.worker.on_start = lambda: starts.append(len(bench.links))
        await bench.run()
        call = asyncio.ensure_future(bench.worker.call("state"))
        await bench.asked()
        bench.die()
        assert await failure(call) == (Code.UNAVAILABLE, "worker probe: killed by SIGKILL")
        assert await failure(asyncio.ensure_future(bench.worker.call("state"))) == (
            Code.UNAVAILABLE,
            "worker probe: killed by SIGKILL",
        )
        await until(lambda: bench.worker.state is State.RUNNING)
        call = asyncio.ensure_future(bench.worker.call("state"))
        bench.say(Response((await bench.asked()).msgid, None, 1))
        assert await call == 1
        assert starts == [1, 2]

    play(scene)


def test_one_that_talks_nonsense_is_ended(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        bench.links[-1].send(b"\xc1\xc1\xc1")
        await until(lambda: bench.worker.state is State.FAILING)
        assert "malformed" in bench.worker.history[-1]["reason"]

    play(scene)


def test_one_that_closes_its_link_and_lives_on_is_ended(play: Callable[..., None], monkeypatch: Any) -> None:
    monkeypatch.setattr(workers, "DEAF_SECONDS", 0.0)

    async def scene(bench: Bench) -> None:
        await bench.run()
        bench.links[-1].close()
        await until(lambda: bench.worker.state is State.FAILING)

    play(scene)


def test_one_that_cannot_be_started_leaves_nothing_open_and_answers_at_once(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.attach()
        before = len(os.listdir("/proc/self/fd"))
        bench.world.kernel.refuse = OSError(12, "clone: Cannot allocate memory")
        bench.worker.start()
        assert states(bench.worker) == ["starting", "backoff"]
        assert len(os.listdir("/proc/self/fd")) == before
        assert (await failure(asyncio.ensure_future(bench.worker.call("state"))))[0] is Code.UNAVAILABLE

    play(scene)


def test_an_answer_that_does_not_come(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        code, message = await failure(asyncio.ensure_future(bench.worker.call("state", timeout=0.01)))
        assert (code, message) == (Code.DEADLINE_EXCEEDED, "worker probe: no answer to state in 0.01 s")
        assert not bench.worker._calls

    play(scene)


def test_one_that_does_not_read_costs_no_memory_without_bound(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        calls = [asyncio.ensure_future(bench.worker.call("state", "x" * MIB, timeout=0.2)) for _ in range(20)]
        codes = {(await failure(call))[0] for call in calls}
        assert codes == {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
        assert len(bench.worker._unsent) < 3 * MIB

    play(scene)


def test_notifications_reach_their_handlers_even_late_ones(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        heard: list[object] = []

        def fail(_what: object) -> None:
            raise KeyError("a fault of the handler")

        await bench.run()
        bench.say(Notification("settled", [1]))
        bench.say(Notification("settled", [2]))
        await until(lambda: bool(bench.worker._unheard))
        await asyncio.sleep(0)
        bench.worker.on("settled", heard.append)
        bench.worker.on("device", fail)
        bench.say(Notification("device", [3]))
        bench.say(Notification("settled", []))
        bench.say(Notification("settled", [4]))
        await until(lambda: heard == [2, 4])

    play(scene)


def test_an_idle_one_is_stopped_and_started_by_the_next_call(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.attach()
        for round_number in (1, 2):
            call = asyncio.ensure_future(bench.worker.call("pods"))
            await until(lambda wanted=round_number: len(bench.links) == wanted)  # type: ignore[misc]
            bench.say(Response((await bench.asked()).msgid, None, []))
            assert await call == []
            await until(lambda: bench.worker.state is State.STOPPING)
            if round_number == 1:
                bench.world.end(bench.worker)
        call = asyncio.ensure_future(bench.worker.call("pods"))  # while it stops
        await asyncio.sleep(0)
        assert bench.worker.state is State.RESTARTING
        bench.world.end(bench.worker)
        await until(lambda: len(bench.links) == 3)
        bench.say(Response((await bench.asked()).msgid, None, ["pod"]))
        assert await call == ["pod"]

    play(scene, idle_seconds=0.01)


def test_one_that_ran_before_the_loop_is_connected_by_it(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        heard: list[int] = []
        bench.worker.on("settled", heard.append)
        bench.worker.start()
        bench.say(Notification("settled", [9]))
        assert bench.worker.state is State.STARTING
        await bench.attach()
        assert bench.worker.status()["state"] == "running"
        await until(lambda: heard == [9])

    play(scene)
