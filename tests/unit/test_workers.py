"""PID 1's side of a worker; the test is the worker, at the other end of the socketpair."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import native, services, worker
from initd.api.protocol import ApiError, Code, Decoder, Notification, Request, Response, encode
from initd.supervise import workers
from initd.supervise.reap import CLD_KILLED
from initd.supervise.states import State
from initd.supervise.workers import LINK, Worker
from tests.unit.api_support import until
from tests.unit.core_support import World, states

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MIB = 1 << 20
PROBE = services.worker("devices")._replace(name="probe")


class Bench:
    """A worker of which the test plays each process: `links` are their ends, the newest last."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.world = World(patch)
        self.links: list[socket.socket] = []
        self.kept: list[int] = []
        self.decoder = Decoder()
        spawn = self.world.kernel.spawn

        def run(what: native.Spawn) -> native.Child:
            child = spawn(what)
            self.links.append(socket.socket(fileno=os.dup(what.fds[LINK])))
            self.links[-1].setblocking(False)
            self.kept += [os.dup(fd) for number, fd in what.fds.items() if number > LINK]
            self.decoder = Decoder()
            return child

        patch.setattr(native, "spawn", run)
        patch.setattr(native, "pidfd_getfd", lambda _pidfd, number: os.dup(number))
        self.worker = Worker(PROBE, self.world.events, self.world.reaper)

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

    def offer(self, wake_after: object, *descriptors: int, received: int = 0) -> None:
        """The worker would like to end."""
        self.say(Notification("idle", [received, wake_after, list(descriptors)]))

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

    def run(scene: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            bench = Bench(monkeypatch)
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


def test_one_that_closes_its_link_and_lives_on_is_ended(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        bench.links[-1].close()
        await bench.worker.ping(0.01)
        assert bench.worker.state is State.FAILING

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
        calls = [asyncio.ensure_future(bench.worker.call("state", "x" * 9000, timeout=0.2)) for _ in range(400)]
        outcomes = [await failure(call) for call in calls]
        assert {code for code, _ in outcomes} == {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
        assert outcomes[-1] == (Code.UNAVAILABLE, "worker probe: it does not read what it is asked")
        assert bench.worker.state is State.RUNNING, "it may only be slow"

    play(scene)


def test_one_whose_frame_is_torn_is_ended(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        call = asyncio.ensure_future(bench.worker.call("state", "x" * 4 * MIB, timeout=0.2))
        await until(lambda: bench.worker.state is State.FAILING)
        assert bench.worker.history[-1]["reason"] == "does not read what it is asked"
        assert (await failure(call))[0] is Code.DEADLINE_EXCEEDED

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


def test_one_that_runs_and_does_not_answer_is_ended(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        ping = asyncio.ensure_future(bench.worker.ping(5))
        bench.say(Response((await bench.asked()).msgid, None, True))
        await ping
        assert bench.worker.state is State.RUNNING
        ping = asyncio.ensure_future(bench.worker.ping(5))
        await bench.asked()
        bench.worker.restart()
        bench.die()
        await ping
        await until(lambda: bench.worker.state is State.RUNNING)  # it was another process that did not answer
        await bench.worker.ping(0.01)
        assert bench.worker.state.value == "failing"
        assert bench.worker.history[-1]["reason"] == "worker probe: no answer to ping in 0.01 s"

    play(scene)


async def rest(bench: Bench, wake_after: float | None, *descriptors: int, received: int = 0) -> None:
    """The worker runs for a while, offers to end, and ends."""
    bench.world.clock.now += 2
    bench.offer(wake_after, *descriptors, received=received)
    await until(lambda: bench.worker.state is State.STOPPING)
    bench.world.end(bench.worker)
    status = bench.worker.status()
    assert (status["desired"], status["status_text"]) == ("down", "idle, starts when needed")


async def answered(bench: Bench, call: asyncio.Future[Any]) -> None:
    bench.say(Response((await bench.asked()).msgid, None, "answer"))
    assert await call == "answer"


def test_a_call_starts_one_that_rests_even_while_it_ends(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        await rest(bench, None)
        call = asyncio.ensure_future(bench.worker.call("pods"))
        await until(lambda: len(bench.links) == 2)
        await answered(bench, call)
        bench.world.clock.now += 2
        bench.offer(None, received=1)
        await until(lambda: bench.worker.state is State.STOPPING)
        call = asyncio.ensure_future(bench.worker.call("pods"))
        await asyncio.sleep(0)
        assert bench.worker.state.value == "restarting"
        bench.world.end(bench.worker)
        await answered(bench, call)
        await rest(bench, None, received=1)  # each process counts for itself
        bench.worker.retire("the end")
        assert (await failure(asyncio.ensure_future(bench.worker.call("pods"))))[0] is Code.UNAVAILABLE

    play(scene)


def test_a_call_waits_for_one_that_rests_no_longer_than_it_may_nor_for_one_that_fails(
    play: Callable[..., None],
) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        await rest(bench, None)
        bench.world.kernel.refuse = OSError(11, "clone: Resource temporarily unavailable")
        assert (await failure(asyncio.ensure_future(bench.worker.call("pods"))))[0] is Code.UNAVAILABLE
        bench.world.kernel.refuse = None
        await until(lambda: bench.worker.state is State.RUNNING)
        bench.world.clock.now += 2
        bench.offer(None)
        await until(lambda: bench.worker.state is State.STOPPING)
        late = await failure(asyncio.ensure_future(bench.worker.call("pods", timeout=0.01)))
        assert late == (Code.DEADLINE_EXCEEDED, "worker probe: no answer to pods in 0.01 s")
        call = asyncio.ensure_future(bench.worker.call("pods"))
        await asyncio.sleep(0)
        bench.world.kernel.refuse = OSError(11, "clone: Resource temporarily unavailable")
        bench.world.end(bench.worker)
        assert (await failure(call))[0] is Code.UNAVAILABLE

    play(scene)


def test_its_time_starts_one_that_rests(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WAKE_SECONDS", (0.01, 0.02))

    async def scene(bench: Bench) -> None:
        await bench.run()
        for times, wake_after in enumerate((0.01, -5.0, 1e300, float("nan")), 2):
            await rest(bench, wake_after)
            await until(lambda times=times: len(bench.links) == times)  # type: ignore[misc]
            await until(lambda: bench.worker.state is State.RUNNING)
            assert bench.worker.history[-2]["reason"] == "its time has come"
        assert bench.worker.restarts == 0, "to rest is not to fail"
        await rest(bench, None)
        assert told(bench) == ["starting", "running", "stopping", "down"], "what the clock has it do is no news"
        await answered(bench, asyncio.ensure_future(bench.worker.call("pods")))
        bench.worker.restart()
        bench.world.end(bench.worker)
        assert told(bench)[4:] == ["starting", "running", "restarting", "starting"]

    play(scene)


def test_one_that_fails_after_the_clock_has_started_it_is_told_of(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WAKE_SECONDS", (0.01, 0.02))

    async def scene(bench: Bench) -> None:
        await bench.run()
        await rest(bench, 0.01)
        await until(lambda: len(bench.links) == 2)
        bench.world.end(bench.worker)
        await until(lambda: bench.worker.state is State.RUNNING)
        assert told(bench)[4:] == ["backoff", "starting", "running"]

    play(scene)


def told(bench: Bench) -> list[object]:
    """The states of which there are events."""
    events = [cast("Any", event) for event in bench.world.events.since(0)]
    return [event["state"] for event in events if event["kind"] == "service"]


def test_a_descriptor_that_cannot_be_watched_is_named_and_the_rest_goes_on(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        regular = os.open(__file__, os.O_RDONLY)
        await rest(bench, None, regular)
        os.close(regular)
        call = asyncio.ensure_future(bench.worker.call("pods"))
        await until(lambda: len(bench.links) == 2)
        await answered(bench, call)

    play(scene)


def test_what_can_be_read_starts_one_that_rests_and_is_handed_back(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        reading, writing = os.pipe()
        await rest(bench, None, reading)
        os.close(reading)
        bench.world.kernel.refuse = OSError(12, "clone: Cannot allocate memory")
        os.write(writing, b"news")
        await until(lambda: bench.worker.state is State.BACKOFF)
        bench.world.kernel.refuse = None
        await until(lambda: bench.worker.state is State.RUNNING)
        (kept,) = bench.kept
        assert os.read(kept, 16) == b"news"
        os.close(kept)
        with pytest.raises(BrokenPipeError):  # nobody else holds the other end any more, PID 1 neither
            os.write(writing, b"x")
        os.close(writing)

    play(scene)


def test_offers_that_are_not_taken_leave_nothing_open(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.run()
        reading, writing = os.pipe()
        before = len(os.listdir("/proc/self/fd"))
        bench.offer(None, reading)  # at once: it could spin
        bench.say(Notification("first", []))
        await until(lambda: "first" in bench.worker._unheard)
        bench.world.clock.now += 2
        bench.worker.tell("configure", {})
        bench.offer(None, reading)  # before it has read what it was told
        bench.offer("soon", reading, received=1)
        bench.say(Notification("idle", []))
        call = asyncio.ensure_future(bench.worker.call("pods"))
        await asyncio.sleep(0)
        bench.offer(None, reading, received=2)  # with a call under way
        bench.say(Notification("second", []))
        await until(lambda: "second" in bench.worker._unheard)
        call.cancel()
        await asyncio.sleep(0)
        bench.offer(None, *[reading] * (worker.DESCRIPTORS + 1), received=2)
        bench.offer(None, reading, 1 << 20, received=2)
        bench.say(Notification("idle", [2, None, [reading, "stdin"]]))
        bench.say(Notification("third", []))
        await until(lambda: "third" in bench.worker._unheard)
        assert bench.worker.state is State.RUNNING
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(reading)
        os.close(writing)

    play(scene)


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
