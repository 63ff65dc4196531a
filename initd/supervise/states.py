"""The state machine of a service: a pure table, no I/O.

A service is in one of these states. Its desired state (up or down) is not stored beside them: `WANTED` says it for
each.

    down         no process, and none is wanted
    blocked      wanted, but it ended early because what it needs was not there yet; starts when that is
    starting     its process runs and has not said that it is ready
    running      its process said that it is ready
    stopping     told to end, and will stay down
    restarting   told to end, and will be started as soon as it has
    failing      missed its start deadline, failed its liveness checks, or says that it ends; backs off afterwards
    backoff      ended unasked; starts again when its delay is over
    crash-loop   the same after several failures in a row: a state of its own, so that it is seen

What happens to it is an `Event`. `step` looks the pair up: every pair has an entry, those in which nothing is to be
done too (`IGNORED`), so that a test can hold the table to be complete. `service.Service` carries the actions out.

At most one main process lives: SPAWN stands only in rows that leave a state without a process, or that an end of the
process leads out of. A stop always ends: TERMINATE and AWAIT arm a deadline, its TIMER kills, and goes on killing. A
start during a stop is not lost: it makes `stopping` into `restarting`.
"""

from enum import Enum
from typing import NamedTuple


class State(Enum):
    """Where a service is."""

    DOWN = "down"
    BLOCKED = "blocked"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    FAILING = "failing"
    BACKOFF = "backoff"
    CRASH_LOOP = "crash-loop"


class Event(Enum):
    """What happens to a service."""

    START = "start requested"
    STOP = "stop requested"
    RESTART = "restart requested"
    READY = "ready"
    UNHEALTHY = "liveness failed"
    ENDING = "says that it is stopping"
    EXITED = "exited"
    EXITED_AGAIN = "exited again"  # or could not be started: the latest of several failures in a row
    EXITED_EARLY = "exited before what it needs was there"
    SPAWN_FAILED = "could not be started"
    UNBLOCKED = "what it needs is there"
    TIMER = "deadline passed"


class Action(Enum):
    """What is to be done on the way into the next state."""

    SPAWN = "start its process, with a deadline to become ready"
    CONFIRM = "note that it is ready, no deadline runs"
    TERMINATE = "ask its process to end, with a deadline"
    AWAIT = "give its process a deadline to end"
    KILL = "kill what is left in its cgroup, and look again"
    BACK_OFF = "wait for its delay"
    REST = "no deadline runs"


class Step(NamedTuple):
    """The outcome of an event: the next state, and at most one thing to do."""

    state: State
    action: Action | None = None


WANTED = frozenset(State) - {State.DOWN, State.STOPPING}
HAS_PROCESS = frozenset({State.STARTING, State.RUNNING, State.STOPPING, State.RESTARTING, State.FAILING})

_ENDS = {
    Event.EXITED: Step(State.BACKOFF, Action.BACK_OFF),
    Event.EXITED_AGAIN: Step(State.CRASH_LOOP, Action.BACK_OFF),
    Event.EXITED_EARLY: Step(State.BLOCKED, Action.REST),
}
_LIVES = {
    **_ENDS,
    Event.STOP: Step(State.STOPPING, Action.TERMINATE),
    Event.RESTART: Step(State.RESTARTING, Action.TERMINATE),
    Event.UNHEALTHY: Step(State.FAILING, Action.TERMINATE),
    Event.ENDING: Step(State.FAILING, Action.AWAIT),
}
_WAITS = {
    Event.TIMER: Step(State.STARTING, Action.SPAWN),
    Event.STOP: Step(State.DOWN, Action.REST),
    Event.RESTART: Step(State.STARTING, Action.SPAWN),
}

TABLE: dict[State, dict[Event, Step]] = {
    State.DOWN: {Event.START: Step(State.STARTING, Action.SPAWN), Event.RESTART: Step(State.STARTING, Action.SPAWN)},
    State.BLOCKED: {
        Event.UNBLOCKED: Step(State.STARTING, Action.SPAWN),
        Event.STOP: Step(State.DOWN, Action.REST),
        Event.RESTART: Step(State.STARTING, Action.SPAWN),
    },
    State.STARTING: {
        **_LIVES,
        Event.READY: Step(State.RUNNING, Action.CONFIRM),
        Event.TIMER: Step(State.FAILING, Action.TERMINATE),
        Event.SPAWN_FAILED: Step(State.BACKOFF, Action.BACK_OFF),
    },
    State.RUNNING: dict(_LIVES),
    State.STOPPING: {
        **dict.fromkeys(_ENDS, Step(State.DOWN, Action.REST)),
        Event.TIMER: Step(State.STOPPING, Action.KILL),
        Event.START: Step(State.RESTARTING),
        Event.RESTART: Step(State.RESTARTING),
    },
    State.RESTARTING: {
        **dict.fromkeys(_ENDS, Step(State.STARTING, Action.SPAWN)),
        Event.TIMER: Step(State.RESTARTING, Action.KILL),
        Event.STOP: Step(State.STOPPING),
    },
    State.FAILING: {
        **_ENDS,
        Event.TIMER: Step(State.FAILING, Action.KILL),
        Event.STOP: Step(State.STOPPING),
        Event.RESTART: Step(State.RESTARTING),
    },
    State.BACKOFF: dict(_WAITS),
    State.CRASH_LOOP: dict(_WAITS),
}
IGNORED = frozenset((state, event) for state in State for event in Event if event not in TABLE[state])


def step(state: State, event: Event) -> Step:
    """What `event` makes of a service in `state`; a pair in `IGNORED` leaves it as it is."""
    return TABLE[state].get(event, Step(state))
