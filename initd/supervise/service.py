"""A supervised process: the one place that changes a service's state, and what the changes do.

Works before the loop runs: containerd is started by PID 1's first phases, and `attach` hands pipe, notify socket and
deadline to the loop later.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn

from initd import cgroups, log, native
from initd.events import EventLog, boottime
from initd.mounts import LOGS
from initd.native import Exit
from initd.services import ServiceSpec
from initd.supervise.backoff import Backoff
from initd.supervise.notify import NUMBERS, NotifySocket
from initd.supervise.output import Output
from initd.supervise.process import Process, find, start_time
from initd.supervise.reap import Reaper, describe
from initd.supervise.states import HAS_PROCESS, IGNORED, WANTED, Action, Event, State, step

if TYPE_CHECKING:
    import asyncio

    from initd.api.types import ServiceStatus, Transition

HISTORY = 100
KILL_AGAIN = 2.0
EXIT_NOT_IMPLEMENTED = 70
LAST_LINES = 20
STATUS_LENGTH = 200
EXTENSIONS = 10  # a start may be put off so many times its deadline


class Service:
    """One service: `spec` says how to run it, `argv` what exactly (the kubelet's is decided late)."""

    def __init__(
        self, spec: ServiceSpec, events: EventLog, reaper: Reaper, pipe: tuple[int, int] | None = None, notify: int = -1
    ) -> None:
        self.spec = spec
        self.argv: tuple[str, ...] = spec.argv
        self.state = State.DOWN
        self.process: Process | None = None
        self.healthy = False
        self.restarts = 0
        self.status_text = ""
        self.last_exit: str | None = None
        self.watchdog_seconds = spec.watchdog_seconds
        self.watchdog_at = 0.0
        self.trouble_since: float | None = None
        self.retired = False
        self.routine = False  # what it does is no news
        self.history: deque[Transition] = deque(maxlen=HISTORY)
        self.output = Output(f"{LOGS}/{spec.name}.log", pipe)
        self.needs: Callable[[], str | None] = lambda: None
        self.changed: Callable[[Service], None] = lambda _service: None
        self.notify = NotifySocket(f"/run/initd/notify/{spec.name}.sock", notify) if spec.notify else None
        self._events = events
        self._reaper = reaper
        self.backoff = Backoff()
        self._deadline: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._spawned = False
        self._failed_spawn: str | None = None
        self._ready_at: float | None = None
        self._backoff_delay = 0.0
        self._start_by = 0.0
        self._errno = ""
        self._oom_kills = 0

    # What others ask for.

    def start(self, reason: str = "start requested") -> None:
        """Bring it up and keep it up."""
        self.handle(Event.START, reason)

    def stop(self, reason: str = "stop requested") -> None:
        """Take it down and keep it down."""
        self.handle(Event.STOP, reason)

    def restart(self, reason: str = "restart requested") -> None:
        """End it and start it again at once."""
        self.handle(Event.RESTART, reason)

    def retire(self, reason: str) -> None:
        """Take it down for good: at the end of the node nobody starts it any more, whatever is still under way."""
        self.retired = True
        self.stop(reason)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on `loop` reads the output and the notifications and keeps the deadlines."""
        self._loop = loop
        loop.add_reader(self.output.reader, self.output.drain)
        if self.notify is not None:
            loop.add_reader(self.notify.fileno(), self._receive)
        if self._deadline is not None:
            self._arm(max(self._deadline - boottime(), 0.0))

    def status(self) -> ServiceStatus:
        waiting = self.state in {State.BACKOFF, State.CRASH_LOOP} and self._deadline is not None
        return {
            "name": self.spec.name,
            "argv": list(self.argv),
            "state": self.state.value,
            "desired": "up" if self.state in WANTED else "down",
            "healthy": self.healthy,
            "pid": self.process.pid if self.process else None,
            "restarts": self.restarts,
            "since": self.history[-1]["monotonic"] if self.history else 0.0,
            "status_text": self.status_text,
            "last_exit": self.last_exit,
            "next_start_seconds": max((self._deadline or 0.0) - boottime(), 0.0) if waiting else None,
            "history": list(self.history),
            "last_lines": [line["text"] for line in self.output.tail(LAST_LINES)],
        }

    # The one way to another state.

    def handle(self, event: Event, reason: str) -> None:
        """Take `event` through the table: change the state, say so, do what the table says."""
        before = self.state
        if (before, event) in IGNORED or (self.retired and event in {Event.START, Event.RESTART, Event.UNBLOCKED}):
            return
        state, action = step(before, event)
        if action is Action.SPAWN:
            self._spawn()
        if state is not before:
            self._enter(state, reason)
        self._act(action)
        if state is not before:
            self.changed(self)

    def _act(self, action: Action | None) -> None:
        match action:
            case Action.SPAWN if self._failed_spawn is not None:
                again = self.backoff.looping
                self.handle(Event.EXITED_AGAIN if again else Event.SPAWN_FAILED, self._failed_spawn)
            case Action.SPAWN:
                self._arm(self.spec.start_seconds)
                self._start_by = boottime() + EXTENSIONS * self.spec.start_seconds
            case Action.TERMINATE | Action.AWAIT:
                if action is Action.TERMINATE:
                    self._terminate()
                self._arm(self.spec.stop_seconds)
            case Action.KILL:
                self._kill()
                self._arm(KILL_AGAIN)
            case Action.BACK_OFF:
                self._arm(self._backoff_delay)
            case Action.CONFIRM:
                self._disarm()
                # The watchdog counts from here: until now the start's deadline held.
                self._ready_at = self.watchdog_at = boottime()
            case Action.REST:
                self._disarm()

    def set_healthy(self, healthy: bool, reason: str) -> None:
        """Note what liveness said; what follows from bad answers is up to the caller."""
        if healthy != self.healthy:
            self.healthy = healthy
            self._events.emit("service", name=self.spec.name, state=self.state.value, healthy=healthy, reason=reason)
            self.changed(self)

    def _enter(self, state: State, reason: str) -> None:
        previous, self.state = self.state, state
        pid = self.process.pid if self.process else None
        self.history.append(
            {"time": time.time(), "monotonic": boottime(), "state": state.value, "reason": reason, "pid": pid}
        )
        if state is not State.RUNNING:
            self.healthy = False
            self.trouble_since = None
        bad = state in {State.BACKOFF, State.CRASH_LOOP, State.FAILING}
        if self.routine and not bad:
            return  # it stands in the history
        write = log.warning if bad else log.info
        write(f"{self.spec.name}: {state.value}", reason=reason, pid=pid)
        self._events.emit(
            "service", name=self.spec.name, state=state.value, previous=previous.value, reason=reason, pid=pid
        )

    # Its process.

    def _spawn(self) -> None:
        self._failed_spawn = self._ready_at = None
        again, self._spawned = self._spawned, True
        self.restarts += again and self.state is not State.DOWN  # to wake what rests is not to restart it
        cgroup = null = -1
        try:
            cgroup = cgroups.open_directory(self._make_cgroup(again=again))
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            how = native.Spawn(
                argv=self.argv,
                env=self._environment(),
                cgroup=cgroup,
                fds={0: null, 1: self.output.writer, 2: self.output.writer, **self._descriptors()},
                rlimits=self.spec.rlimits,
                oom_score_adj=self.spec.oom_score_adj,
                bounding=self.spec.capabilities,
                sealed=self.spec.sealed,
            )
            child = native.spawn(how)
            if child.pid == 0:
                self.forked()
        except Exception as error:  # noqa: BLE001 whatever it is (ENOMEM, a NUL in argv): a reason to wait, not to fall
            self.ended()
            self._failed_spawn = str(error)
            self._backoff_delay = self.backoff.failed(0.0)
            return
        finally:
            for descriptor in (cgroup, null):
                if descriptor >= 0:
                    os.close(descriptor)
        self.process = Process(child.pid, child.pidfd, start_time(child.pid), child.report)
        self.status_text = self._errno = ""
        self.watchdog_seconds = self.spec.watchdog_seconds
        self._oom_kills = cgroups.oom_kills(self.spec.cgroup)
        self._reaper.watch(child.pid, self._ended)
        self.started()

    def _make_cgroup(self, *, again: bool) -> str:
        """Make its cgroup, anew if it ran before; returns the one to start in. Raises OSError."""
        path = self.spec.cgroup
        settings = {"cgroup.freeze": 0, **self.spec.cgroup_settings}  # a child in a frozen one would never come to exec
        try:
            refused = (cgroups.renew if again else cgroups.configure)(path, settings)
        except OSError as error:
            if error.errno != errno.EBUSY or not (self.backoff.looping or self.spec.main_only):
                raise  # what it left behind is still ending: the next tries will find it gone
            refused = cgroups.configure(path, settings)
            if not self.spec.main_only:
                # In uninterruptible sleep (a mount that hangs), and killed, as whoever is cloned beside it would be.
                log.warning(f"{self.spec.name}: starts beside what it left", pids=str(cgroups.processes(path)))
                path = f"{path}/{self.restarts}"
                refused += cgroups.configure(path, {})
        for line in refused:
            log.warning(f"{self.spec.name}: cgroup setting refused", setting=line)
        return path

    def _environment(self) -> Mapping[str, str]:
        extra = {}
        if self.notify is not None:
            extra["NOTIFY_SOCKET"] = self.notify.path
        if self.spec.watchdog_seconds:
            extra["WATCHDOG_USEC"] = str(int(self.spec.watchdog_seconds * 1e6))
        return {**self.spec.environment, **extra}

    def _descriptors(self) -> dict[int, int]:
        """Descriptors that the process gets besides its output: child's number -> ours."""
        return {}

    def forked(self) -> NoReturn:
        """In the child of a specification without argv, a copy of PID 1: be what it is for, and end with it."""
        os._exit(EXIT_NOT_IMPLEMENTED)

    def started(self) -> None:
        """Called when a new process is there."""

    def ended(self) -> None:
        """Called when the process is gone, or did not come to be."""

    def _ended(self, end: Exit) -> None:
        self._receive()  # its last words: why it ends, or who it is from now on
        if self.process is None or end.pid != self.process.pid:
            return
        late = self.process.report >= 0 and native.late_failure(self.process.report, self.argv)
        self._let_go(self.process)
        self.process = None
        self.last_exit = str(late or describe(end) + self._errno)
        if cgroups.oom_kills(self.spec.cgroup) > self._oom_kills:
            self.last_exit += " (out of memory)"
        self._after_end()

    def lost(self, reason: str) -> None:
        """Its process is gone, and nobody was there to see how."""
        self.last_exit = reason
        self._after_end()

    def _after_end(self) -> None:
        if not self.spec.main_only:
            self._kill()  # what it left behind must not meet its successor
        self.output.end()  # nor must its last words run into its successor's first
        self.ended()
        if self.state in HAS_PROCESS - {State.STOPPING, State.RESTARTING}:
            missing = self.needs()
            if missing is not None and self.state is not State.FAILING:
                self.handle(Event.EXITED_EARLY, f"{self.last_exit}; waits for {missing}")
                return
            ready = 0.0 if self._ready_at is None else boottime() - self._ready_at
            self._backoff_delay = self.backoff.failed(ready)
        self.handle(Event.EXITED_AGAIN if self.backoff.looping else Event.EXITED, self.last_exit or self.status_text)

    def _let_go(self, process: Process) -> None:
        if self._loop is not None:
            self._loop.remove_reader(process.pidfd)
        for descriptor in (process.pidfd, process.report):
            if descriptor >= 0:
                os.close(descriptor)

    def _hand_over(self, pid: int) -> str | None:
        """Take another process of its cgroup for the main one; returns what is wrong with it."""
        if self._is_main(pid):
            return None
        try:
            process = find(pid, self.spec.cgroup)
        except LookupError as error:
            return f"MAINPID={pid} {error}"
        if self.process is not None:
            self._let_go(self.process)
        self.adopt(process)
        log.info(f"{self.spec.name}: has another main process", pid=pid)
        return None

    def adopt(self, process: Process) -> None:
        """Take a process that runs for the main one; it may be, and stay, another's child."""
        self.process = process
        self._reaper.watch(process.pid, self._ended)
        if self._loop is not None:
            self._loop.add_reader(process.pidfd, self._gone, process)

    def _gone(self, process: Process) -> None:
        if self._loop is not None:
            self._loop.remove_reader(process.pidfd)
        self._reaper.gone(process.pid)

    def _terminate(self) -> None:
        if self.process is None:
            return
        try:
            native.pidfd_send_signal(self.process.pidfd, signal.SIGTERM)
            # SIGTERM stays pending in a stopped process until it goes on.
            native.pidfd_send_signal(self.process.pidfd, signal.SIGCONT)
        except OSError as error:
            log.error(f"{self.spec.name}: cannot be told to end", error=str(error))  # the deadline kills it

    def _kill(self) -> None:
        try:
            if not self.spec.main_only:
                cgroups.kill(self.spec.cgroup)
            if self.process is not None:  # wherever it has moved to
                native.pidfd_send_signal(self.process.pidfd, signal.SIGKILL)
        except OSError as error:
            log.error(f"{self.spec.name}: cannot be killed", error=str(error))

    # Its deadline and its messages.

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = boottime() + seconds
        if self._loop is not None:
            self._timer = self._loop.call_later(seconds, self.handle, Event.TIMER, self._why_now())

    def _why_now(self) -> str:
        match self.state:
            case State.STARTING:
                return f"not ready {self.spec.start_seconds:g} s after its start"
            case State.BACKOFF | State.CRASH_LOOP:
                return f"delay of {self._backoff_delay:.3f} s over"
            case _:
                return "did not end in time"

    def _disarm(self) -> None:
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _receive(self) -> None:
        if self.notify is not None:
            self.notify.receive(self._is_main, self._accept)

    def _is_main(self, pid: int) -> bool:
        return self.process is not None and pid == self.process.pid

    def _accept(self, message: dict[str, str]) -> str | None:
        """Do what a message asks for (sd_notify(3)), as `notify.parse` gives it; returns what is wrong with it."""
        number = {key: int(message[key]) for key in NUMBERS & message.keys()}
        wrong = self._hand_over(number["MAINPID"]) if "MAINPID" in number else None
        self.status_text = message.get("STATUS", self.status_text)[:STATUS_LENGTH]
        if "ERRNO" in number:
            self._errno = f" ({errno.errorcode.get(number['ERRNO'], 'an unknown errno')})"
        if "WATCHDOG_USEC" in number:
            self.watchdog_seconds = number["WATCHDOG_USEC"] / 1e6
        if "WATCHDOG_USEC" in number or message.get("WATCHDOG") == "1":
            self.watchdog_at = boottime()
        if "EXTEND_TIMEOUT_USEC" in number and self.state is State.STARTING and self._deadline is not None:
            now = boottime()
            longer = min(number["EXTEND_TIMEOUT_USEC"] / 1e6, self.spec.start_seconds, self._start_by - now)
            self._arm(max(longer, self._deadline - now))
        if message.get("WATCHDOG") == "trigger":
            self.handle(Event.UNHEALTHY, "asked to be ended (WATCHDOG=trigger)")
        if "READY" in message:
            self.handle(Event.READY, "ready")
        if "STOPPING" in message:
            self.handle(Event.ENDING, "says that it is stopping")
        return wrong
