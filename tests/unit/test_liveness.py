"""Liveness: what counts as an answer, and what follows from none."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd import log, watchdog
from initd.node import Node
from initd.services import HttpProbe, ServiceSpec
from initd.supervise import liveness
from initd.supervise.service import Service
from initd.supervise.states import State
from tests.unit.api_support import until
from tests.unit.core_support import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SPEC = ServiceSpec("kubelet", ("/bin/kubelet",), {}, "kubelet", liveness=HttpProbe("127.0.0.1", 10248, "/healthz"))


def answer(data: bytes | None, *, path: Path | None = None, timeout: float = 5.0) -> str | None:
    """What a probe says of a server that answers `data`; None: it never answers."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        if data is None:
            await reader.read()  # until the probe gives up
        else:
            writer.write(data)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    async def whole() -> str | None:
        if path is not None:
            server = await asyncio.start_unix_server(serve, str(path))
            result = await liveness.http2_socket(str(path), timeout)
        else:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            result = await liveness.http("127.0.0.1", server.sockets[0].getsockname()[1], "/healthz", timeout)
        await ended.wait()
        server.close()
        return result

    return asyncio.run(whole())


def test_http() -> None:
    assert answer(b"HTTP/1.1 200 OK\r\n\r\nok") is None
    for data, words in (
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "500 Internal"),
        (b"", "''"),
        (b"200", "'200'"),
        (b"\xff" * (1 << 17), "127.0.0.1"),
    ):
        assert words in str(answer(data))
    assert "no answer from http://127.0.0.1" in str(answer(None, timeout=0.05))
    assert "Connect call failed" in str(asyncio.run(liveness.http("127.0.0.1", 1, "/")))


def test_http2(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert answer(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00", path=path) is None
    assert "not an HTTP/2 server" in str(answer(b"HTTP/1.1 400", path=path))
    assert "bytes" in str(answer(b"\x00", path=path))
    assert "no answer from" in str(answer(None, path=path, timeout=0.05))
    assert "No such file" in str(asyncio.run(liveness.http2_socket(str(tmp_path / "none"))))


def test_what_pid_1_itself_lacks_is_no_answer(tmp_path: Path) -> None:
    async def ask() -> None:
        limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for probe in liveness.http("127.0.0.1", 1, "/"), liveness.http2_socket(str(tmp_path)):
                with pytest.raises(OSError, match="Too many open files"):
                    await probe
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in taken:
                os.close(descriptor)

    asyncio.run(ask())


class Bench:
    """A service that is ready, and what its probe will say."""

    def __init__(self, patch: pytest.MonkeyPatch, spec: ServiceSpec) -> None:
        self.world = World(patch)
        self.trouble: str | OSError | None = None
        self.service = Service(spec, self.world.events, self.world.reaper)
        self.service.attach(self.world.clock.loop())
        self.service.start()
        self.world.clock.advance(45)  # a slow machine
        self.service._accept({"READY": "1"})
        patch.setattr(liveness, "http", self.probe)

    async def probe(self, *_where: object) -> str | None:
        if isinstance(self.trouble, OSError):
            raise self.trouble
        return self.trouble

    def ask(self) -> State:
        asyncio.run(liveness.ask(self.service))
        return self.service.state


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch, SPEC)
    yield made
    os.close(made.service.output.reader)
    os.close(made.service.output.writer)


def test_one_that_is_just_ready_may_take_its_time_to_answer(bench: Bench) -> None:
    bench.trouble = "connection refused"
    for _ in range(20):  # asked often, since it is to be known soon
        assert bench.ask() is State.RUNNING
        bench.world.clock.advance(0.1)
    assert not bench.service.healthy
    bench.trouble = None
    assert bench.ask() is State.RUNNING
    assert bench.service.healthy


def test_bad_answers_for_long_enough_end_it(bench: Bench) -> None:
    bench.ask()
    bench.trouble = "status 500"
    bench.ask()
    bench.world.clock.advance(liveness.PATIENCE - 1)
    bench.trouble = None
    assert bench.ask() is State.RUNNING
    bench.trouble = "status 500"
    bench.ask()
    bench.world.clock.advance(liveness.PATIENCE - 1)
    assert bench.ask() is State.RUNNING, "a good answer in between begins the count anew"
    bench.world.clock.advance(1)
    assert bench.ask() is State.FAILING
    assert bench.service.history[-1]["reason"] == "status 500"


def test_a_watchdog_counts_from_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Bench(monkeypatch, SPEC._replace(watchdog_seconds=30.0))
    assert made.ask() is State.RUNNING, "it took 45 s to be ready, which is no missed watchdog"
    made.world.clock.advance(29)
    made.service._accept({"WATCHDOG": "1"})
    made.world.clock.advance(29)
    assert made.ask() is State.RUNNING
    made.world.clock.advance(2)
    assert made.ask() is State.FAILING
    assert made.service.history[-1]["reason"] == "no WATCHDOG=1 for 30 s"


def test_a_service_may_set_its_watchdog_until_its_next_start(bench: Bench) -> None:
    bench.service._accept({"WATCHDOG_USEC": "5000000"})
    bench.world.clock.advance(6)
    assert bench.ask() is State.FAILING
    assert bench.service.history[-1]["reason"] == "no WATCHDOG=1 for 5 s"
    bench.world.end(bench.service)
    bench.world.advance(30)
    bench.service._accept({"READY": "1"})
    bench.world.clock.advance(6)
    assert bench.ask() is State.RUNNING
    bench.service._accept({"WATCHDOG_USEC": "5000000"})
    assert bench.ask() is State.RUNNING, "it counts from now"


def test_one_that_could_not_be_asked_is_not_ended(bench: Bench) -> None:
    bench.ask()
    bench.trouble = OSError(errno.EMFILE, "Too many open files")
    for _ in range(3):
        assert bench.ask() is State.RUNNING
        bench.world.clock.advance(liveness.PATIENCE)
    assert bench.service.healthy


def test_an_answer_about_one_that_is_gone_counts_for_nothing(bench: Bench) -> None:
    async def probe(*_where: object) -> str:
        bench.world.end(bench.service)
        bench.world.clock.advance(1)
        bench.service._accept({"READY": "1"})
        return "connection reset"

    liveness.http, before = probe, liveness.http  # type: ignore[assignment]
    try:
        bench.ask()
    finally:
        liveness.http = before
    assert bench.service.state is State.RUNNING
    assert bench.service.trouble_since is None


def watch(monkeypatch: pytest.MonkeyPatch, feed: Callable[[], None], ask: Callable[[], Any], *, done: Any) -> None:
    """Watch over one healthy service and a watchdog of 20 ms until `done`."""

    async def asked(_service: object) -> None:
        await ask()

    async def whole() -> None:
        healthy = SimpleNamespace(state=State.RUNNING, healthy=True)
        node = SimpleNamespace(services={"kubelet": healthy}, workers={}, watchdog=None)
        watching = asyncio.create_task(liveness.watch(cast("Any", node)))
        await asyncio.sleep(0)
        node.watchdog = (9, 0.02)
        node.on_service_change()
        await until(lambda: done() or watching.done())
        assert not watching.done()
        watching.cancel()

    monkeypatch.setattr(watchdog, "feed", lambda _fd: feed())
    monkeypatch.setattr(liveness, "ask", asked)
    asyncio.run(whole())


def test_one_tick_asks_the_services_and_feeds_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def ask() -> None:
        done.append("ask")

    watch(monkeypatch, lambda: done.append("feed"), ask, done=lambda: len(done) > 15)
    second = done.index("feed", done.index("feed") + 1)  # the first is out of turn: the watchdog was just found
    assert done[second : second + 10] == ["feed", "ask"] * 5


def test_a_service_that_hangs_does_not_keep_the_watchdog_from_being_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    watch(monkeypatch, lambda: fed.append(1), lambda: asyncio.Event().wait(), done=lambda: len(fed) > 5)


def test_a_watchdog_that_fails_is_said_once_and_the_services_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    said: list[str] = []

    def feed() -> None:
        raise OSError(errno.ENODEV, "No such device")

    async def ask() -> None:
        asked.append(1)

    monkeypatch.setattr(log, "error", lambda event, **_fields: said.append(event))
    watch(monkeypatch, feed, ask, done=lambda: len(asked) > 5)
    assert said == ["the hardware's watchdog is not fed"]


def test_workers_that_run_are_asked_at_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def worker(name: str, state: State) -> Any:
        async def ping(seconds: float) -> None:
            assert seconds == liveness.PATIENCE
            asked.append(name)

        return SimpleNamespace(spec=SimpleNamespace(name=name), state=state, ping=ping)

    async def whole() -> None:
        node = Node()
        node.loop = asyncio.get_running_loop()
        node.workers = {"network": worker("network", State.RUNNING), "devices": worker("devices", State.DOWN)}
        watching = asyncio.create_task(liveness.watch(node))
        await until(lambda: len(asked) == 3 or watching.done())
        node.on_service_change()  # of which there may be many
        watching.cancel()
        await asyncio.gather(*node.tasks, return_exceptions=True)

    monkeypatch.setattr(liveness, "TICK", 0.01)
    asyncio.run(whole())
    assert asked == ["network"] * 3
