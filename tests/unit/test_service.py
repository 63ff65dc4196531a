"""Whole histories of services, on a kernel and a clock of the test's own."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.services import ServiceSpec
from initd.supervise.backoff import HEALTHY, LOOP
from initd.supervise.notify import parse
from initd.supervise.reap import CLD_KILLED
from initd.supervise.service import EXTENSIONS, HISTORY, KILL_AGAIN, Service
from initd.supervise.states import Event, State
from tests.unit.core_support import World, states

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = ServiceSpec("probe", ("/bin/probe",), {"PATH": "/bin"}, "probe", start_seconds=60.0, stop_seconds=10.0)


class Bench:
    """A world and one service in it."""

    def __init__(self, patch: pytest.MonkeyPatch, spec: ServiceSpec = SPEC) -> None:
        self.world = World(patch)
        self.service = Service(spec, self.world.events, self.world.reaper)
        self.service.attach(self.world.clock.loop())

    def close(self) -> None:
        os.close(self.service.output.reader)
        os.close(self.service.output.writer)
        if self.service.process is not None:
            os.close(self.service.process.pidfd)

    def run(self) -> None:
        """Start it and let it say that it is ready."""
        self.service.start()
        self.say("READY=1")

    def say(self, text: str) -> None:
        """Let the main process send this."""
        message = parse(text.encode())
        assert message is not None
        assert self.service._accept(message) is None

    def state(self) -> State:
        return self.service.state

    def signals(self) -> list[int]:
        return [number for _, number in self.world.kernel.signals]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    made.close()


@pytest.fixture
def main_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch, SPEC._replace(main_only=True))
    yield made
    made.close()


def test_it_starts_and_is_ready(bench: Bench) -> None:
    bench.run()
    assert states(bench.service) == ["starting", "running"]
    (spawned,) = bench.world.kernel.alive.values()
    assert spawned.argv == ("/bin/probe",)
    assert set(spawned.fds) == {0, 1, 2}
    assert [event["state"] for event in bench.world.events.since(0)] == ["starting", "running"]  # type: ignore[typeddict-item]
    bench.world.advance(1e6)
    assert bench.state() is State.RUNNING


def test_crashes_back_off_and_become_a_loop(bench: Bench) -> None:
    bench.service.start()
    for _ in range(LOOP):
        bench.world.end(bench.service)
        bench.world.advance(30)
    assert states(bench.service) == ["starting", "backoff"] * (LOOP - 1) + ["starting", "crash-loop", "starting"]
    assert bench.service.restarts == LOOP
    assert bench.service.last_exit == "exited with code 1"
    bench.world.end(bench.service, CLD_KILLED, signal.SIGSEGV)
    status = bench.service.status()
    assert (status["state"], status["desired"], status["last_exit"]) == ("crash-loop", "up", "killed by SIGSEGV")
    assert status["next_start_seconds"] is not None
    assert 0 < status["next_start_seconds"] <= 30


def test_health_ends_a_loop_but_a_start_that_hangs_does_not(bench: Bench) -> None:
    bench.service.start()
    for _ in range(LOOP):
        bench.world.advance(SPEC.start_seconds + SPEC.stop_seconds + KILL_AGAIN)  # alive for over a minute, never ready
        bench.world.advance(30)
    assert "crash-loop" in states(bench.service)
    bench.say("READY=1")
    bench.world.advance(HEALTHY)
    bench.world.end(bench.service)
    assert bench.state() is State.BACKOFF


def test_an_early_end_waits_for_what_was_missing(bench: Bench) -> None:
    missing: list[str] = ["containerd"]
    bench.service.needs = lambda: missing[0] if missing else None
    bench.service.start()
    bench.world.end(bench.service)
    assert bench.state() is State.BLOCKED
    assert bench.service.history[-1]["reason"] == "exited with code 1; waits for containerd"
    bench.world.advance(1000)
    assert not bench.world.kernel.alive
    missing.clear()
    bench.service.handle(Event.UNBLOCKED, "containerd is ready")
    assert states(bench.service) == ["starting", "blocked", "starting"]
    bench.world.end(bench.service)
    assert bench.state() is State.BACKOFF, "the first real failure, not the second"


def test_a_stop_escalates(bench: Bench) -> None:
    bench.run()
    bench.service.stop()
    assert bench.signals() == [signal.SIGTERM, signal.SIGCONT]
    bench.world.clock.advance(SPEC.stop_seconds)
    assert bench.world.kernel.killed_cgroups == ["probe"]
    assert bench.signals()[2:] == [signal.SIGKILL]
    bench.world.clock.advance(KILL_AGAIN)
    assert bench.world.kernel.killed_cgroups == ["probe", "probe"]
    bench.world.advance(0)
    assert states(bench.service)[-2:] == ["stopping", "down"]
    bench.world.advance(1000)
    assert bench.state() is State.DOWN


def test_a_start_during_a_stop_is_not_lost(bench: Bench) -> None:
    bench.run()
    bench.service.stop()
    bench.service.start()
    bench.world.end(bench.service)
    assert states(bench.service)[2:] == ["stopping", "restarting", "starting"]
    assert bench.world.kernel.most_alive == 1


def test_a_retired_service_stays_down(bench: Bench) -> None:
    bench.run()
    bench.service.retire("shutdown")
    bench.service.restart()
    bench.world.end(bench.service)
    bench.service.start()
    bench.service.restart()
    assert states(bench.service)[-2:] == ["stopping", "down"]
    assert not bench.world.kernel.alive


def test_what_it_leaves_behind_is_killed_before_its_successor_starts(bench: Bench) -> None:
    bench.run()
    bench.world.end(bench.service)
    assert bench.world.kernel.killed_cgroups == ["probe"]
    assert bench.signals() == []


def test_its_cgroup_is_made_anew_for_each_start_but_the_first(bench: Bench) -> None:
    """A child cloned into a cgroup that was killed before would be killed at once."""
    bench.run()
    assert bench.world.kernel.renewed_cgroups == []
    bench.world.kernel.left_behind = True
    bench.service.restart()
    bench.world.end(bench.service)
    assert states(bench.service)[-2:] == ["starting", "backoff"]
    assert "busy" in bench.service.history[-1]["reason"]
    bench.world.kernel.left_behind = False
    bench.world.advance(1)
    assert bench.service.state is State.STARTING
    assert bench.world.kernel.renewed_cgroups == ["probe"]


def test_what_cannot_be_ended_does_not_keep_it_down(bench: Bench) -> None:
    """A process in uninterruptible sleep: whoever is cloned beside it would be killed, in a cgroup below it is not."""
    bench.run()
    bench.world.kernel.left_behind = True
    bench.service.restart()
    bench.world.end(bench.service)
    bench.world.advance(1)
    assert states(bench.service)[-5:] == ["starting", "backoff", "starting", "crash-loop", "starting"]
    first, second = bench.world.kernel.opened_cgroups
    assert (first, os.path.dirname(second)) == ("probe", "probe")


def test_what_a_main_only_service_left_behind_does_not_hold_up_its_start(main_only: Bench) -> None:
    main_only.run()
    main_only.world.kernel.left_behind = True
    main_only.service.restart()
    main_only.world.end(main_only.service)
    assert main_only.service.state is State.STARTING


def test_a_main_only_service_leaves_its_cgroup_alone(main_only: Bench) -> None:
    main_only.run()
    main_only.service.stop()
    main_only.world.clock.advance(SPEC.stop_seconds)
    main_only.world.advance(0)
    assert main_only.service.state is State.DOWN
    assert main_only.world.kernel.killed_cgroups == []
    assert main_only.signals()[-1] == signal.SIGKILL


@pytest.mark.parametrize(
    "refusal",
    [OSError(11, "clone: Resource temporarily unavailable"), ValueError("argv: holds a NUL byte"), MemoryError()],
    ids=lambda value: type(value).__name__,
)
def test_a_start_that_fails_backs_off_and_goes_on(bench: Bench, refusal: Exception) -> None:
    bench.world.kernel.refuse = refusal
    before = len(os.listdir("/proc/self/fd"))
    bench.service.start()
    assert states(bench.service) == ["starting", "backoff"]
    assert bench.service.history[-1]["reason"] == str(refusal)
    bench.world.advance(100)
    assert bench.state() is State.CRASH_LOOP
    assert len(os.listdir("/proc/self/fd")) == before
    bench.world.kernel.refuse = None
    bench.world.advance(31)
    assert bench.state() is State.STARTING


def test_a_cgroup_that_cannot_be_opened_is_a_failed_start(bench: Bench) -> None:
    bench.world.kernel.cgroup_error = FileNotFoundError(2, "No such file or directory", "/sys/fs/cgroup/probe")
    bench.service.start()
    assert bench.state() is State.BACKOFF
    assert "/sys/fs/cgroup/probe" in bench.service.history[-1]["reason"]


def test_not_ready_in_time_is_a_failure(bench: Bench) -> None:
    bench.service.start()
    bench.world.clock.advance(SPEC.start_seconds)
    assert bench.state() is State.FAILING
    assert bench.service.history[-1]["reason"] == "not ready 60 s after its start"
    bench.world.end(bench.service, CLD_KILLED, signal.SIGTERM)
    assert bench.state() is State.BACKOFF


def test_it_may_ask_for_more_time_but_not_for_less_nor_for_ever(bench: Bench) -> None:
    bench.service.start()
    for worthless in ("1", "-5", "soon", "9" * 400, ""):
        bench.say(f"EXTEND_TIMEOUT_USEC={worthless}")
    bench.world.advance(SPEC.start_seconds - 1)
    assert bench.state() is State.STARTING
    bench.say("EXTEND_TIMEOUT_USEC=30000000")
    bench.world.advance(29)
    assert bench.state() is State.STARTING
    bench.say("EXTEND_TIMEOUT_USEC=" + "9" * 20)
    bench.world.clock.advance(SPEC.start_seconds)
    assert bench.state() is State.FAILING
    bench.say("EXTEND_TIMEOUT_USEC=30000000")
    assert bench.world.clock.pending()[0].at == bench.world.clock.now + SPEC.stop_seconds


def test_it_cannot_ask_for_more_time_again_and_again(bench: Bench) -> None:
    bench.service.start()
    for _ in range(2 * EXTENSIONS):
        bench.say("EXTEND_TIMEOUT_USEC=60000000")
        bench.world.clock.advance(SPEC.start_seconds - 1)
    began, ended = (entry["monotonic"] for entry in bench.service.history)
    assert bench.state() is not State.STARTING
    assert ended - began == EXTENSIONS * SPEC.start_seconds


def test_one_that_says_that_it_stops_is_awaited_then_killed_and_starts_again(bench: Bench) -> None:
    bench.run()
    bench.say("STOPPING=1\nSTATUS=going")
    assert (bench.state(), bench.signals()) == (State.FAILING, []), "a second SIGTERM makes some give up at once"
    assert bench.service.history[-1]["reason"] == "says that it is stopping"
    bench.world.clock.advance(SPEC.stop_seconds - 1)
    assert bench.signals() == []
    bench.world.clock.advance(1)
    assert bench.signals() == [signal.SIGKILL]
    bench.world.advance(0)
    assert states(bench.service)[-2:] == ["failing", "backoff"]


def test_a_stop_that_was_asked_for_is_no_failure(bench: Bench) -> None:
    bench.run()
    bench.service.stop()
    bench.say("STOPPING=1")
    bench.world.end(bench.service, status=0)
    assert states(bench.service)[-2:] == ["stopping", "down"]


def test_the_errno_that_it_names_stands_in_its_exit_until_its_next_start(bench: Bench) -> None:
    bench.run()
    bench.say("ERRNO=2")
    bench.world.end(bench.service)
    assert bench.service.last_exit == "exited with code 1 (ENOENT)"
    bench.world.advance(30)
    bench.world.end(bench.service)
    assert bench.service.last_exit == "exited with code 1"
    bench.world.advance(30)
    bench.say(f"ERRNO={2**64 - 1}")
    bench.world.end(bench.service)
    assert bench.service.last_exit == "exited with code 1 (an unknown errno)"


def test_a_service_may_ask_to_be_ended(bench: Bench) -> None:
    bench.run()
    bench.say(f"WATCHDOG=trigger\nSTATUS={'x' * 1000}")
    assert bench.state() is State.FAILING
    assert bench.service.status_text == "x" * 200


def test_an_out_of_memory_kill_is_named(bench: Bench) -> None:
    bench.run()
    bench.world.kernel.oom_kills = 1
    bench.world.end(bench.service, CLD_KILLED, signal.SIGKILL)
    assert bench.service.last_exit == "killed by SIGKILL (out of memory)"


def test_deadlines_that_began_before_the_loop_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    service = Service(SPEC, world.events, world.reaper)
    service.start()
    world.clock.now += 25
    service.attach(world.clock.loop())
    assert world.clock.pending()[0].at == world.clock.now + SPEC.start_seconds - 25
    world.clock.advance(40)
    assert service.state is State.FAILING


def test_its_history_is_bounded(bench: Bench) -> None:
    bench.service.start()
    for _ in range(HISTORY):
        bench.world.end(bench.service)
        bench.world.advance(31)
    assert len(bench.service.status()["history"]) == HISTORY


STEPS = st.sampled_from(
    ["start", "stop", "restart", "ready", "stopping", "end", "unhealthy", "unblocked", "refuse", "allow", "time"]
)


@given(st.lists(STEPS, max_size=40), st.booleans())
def test_whatever_happens_there_is_one_process_and_the_last_wish_holds(steps: list[str], misses: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bench = Bench(patch)
        service, kernel = bench.service, bench.world.kernel
        service.needs = lambda: "another" if misses else None
        wanted = False
        for step in steps:
            match step:
                case "start" | "stop" | "restart":
                    getattr(service, step)()
                    wanted = step != "stop"
                case "end" if service.process is not None:
                    bench.world.end(service)
                case "ready":
                    bench.say("READY=1")
                case "stopping":
                    bench.say("STOPPING=1")
                case "unhealthy":
                    service.handle(Event.UNHEALTHY, "no answer")
                case "unblocked":
                    service.handle(Event.UNBLOCKED, "there")
                case "refuse" | "allow":
                    kernel.refuse = OSError(12, "clone: Cannot allocate memory") if step == "refuse" else None
                case "time":
                    bench.world.advance(35)
            assert kernel.most_alive <= 1
            assert (service.process is not None) == bool(kernel.alive)
            assert service.status()["desired"] == ("up" if wanted else "down")
        transitions = [event for event in bench.world.events.since(0) if event["kind"] == "service"]
        assert [event["state"] for event in transitions] == states(service)  # type: ignore[typeddict-item]
        kernel.refuse = None
        for _ in range(3):  # a deadline, a kill, a delay: then it is where it should be, if nothing is missing
            bench.world.advance(SPEC.start_seconds + SPEC.stop_seconds)
        if not wanted:
            assert (service.state, kernel.alive) == (State.DOWN, {})
        elif service.state is not State.BLOCKED:
            assert service.state is State.RUNNING or bench.world.clock.pending(), "it would never be started again"
        bench.close()
