"""How the phases of the boot are run.

A phase runs as soon as what it waits for is done. The early ones are plain functions and run at once, one after the
other; one that returns a coroutine is finished in the loop, beside the others, and holds up only the phases that name
it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from initd import log
from initd.events import boottime
from initd.node import Node

if TYPE_CHECKING:
    from initd.api.types import BootPhase

NOTICEABLE = 0.0005  # seconds of waiting that are worth a name in the boot's times


class Phase(NamedTuple):
    """One phase. A `fatal` one that fails puts the node into maintenance; any other is noted as a reason. It is skipped
    if what it is `after` was not done; what it is `behind` it only waits for. One for `each_life` is run again after a
    fault of PID 1: what it did was in PID 1's memory.
    """

    name: str
    run: Callable[[Node], Coroutine[Any, Any, None] | None]
    fatal: bool = False
    after: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    each_life: bool = False


class Skipped(Exception):  # noqa: N818 an outcome, not an error
    """Raised by a phase that has nothing to do; the text says why."""


class Sequence:
    """Runs `phases` on a node: `early` without a loop, then `finish` in it."""

    def __init__(self, node: Node, phases: tuple[Phase, ...]) -> None:
        self._node = node
        self._phases = phases
        self._pending: dict[str, Coroutine[Any, Any, None] | None] = {}
        self._noted = {noted["name"]: noted["status"] for noted in node.boot_phases}  # in an earlier life of PID 1
        self._failed = {name for name, status in self._noted.items() if status != "done"}

    def early(self) -> None:
        """Run what can run without a loop; a phase that is after one not finished yet is left for `finish`."""
        for phase in self._phases:
            if phase.name in self._noted and not phase.each_life:
                continue
            if any(name in self._pending for name in phase.after + phase.behind):
                self._pending[phase.name] = None
                continue
            if (rest := self._attempt(phase, boottime())) is not None:
                self._pending[phase.name] = rest

    async def finish(self) -> None:
        """Finish the others, each as soon as what it is after is done; then the node runs."""
        import asyncio  # noqa: PLC0415 the loop runs now

        done = {name: asyncio.Event() for name in self._pending}

        async def complete(phase: Phase, rest: Coroutine[Any, Any, None] | None) -> None:
            asked, waited, failure = boottime(), None, None
            for name in phase.after + phase.behind:
                if name in done and not done[name].is_set():
                    waited = name
                    await done[name].wait()
            begun = boottime()
            waited = waited if begun - asked > NOTICEABLE else None
            try:
                rest = rest or self._attempt(phase, begun, waited)
                if rest is None:
                    return
                try:
                    await rest
                except Exception as caught:  # noqa: BLE001 see _attempt
                    failure = caught
                self._note(phase, begun, waited, failure)
            finally:
                done[phase.name].set()  # whatever became of it: others wait

        pending = [phase for phase in self._phases if phase.name in self._pending]
        await asyncio.gather(*(complete(phase, self._pending[phase.name]) for phase in pending))
        if self._node.phase == "booting":
            self._node.enter("running")

    def _attempt(self, phase: Phase, begun: float, waited: str | None = None) -> Coroutine[Any, Any, None] | None:
        """Run a phase's function, note its outcome if that was all of it."""
        rest, failure = None, None
        try:
            if self._node.phase == "stopping" and not phase.each_life:
                raise Skipped("the node is stopping")  # noqa: TRY301 noted like any other
            for name in phase.after:
                if name in self._failed:
                    raise Skipped(f"{name} was not done")  # noqa: TRY301 noted like any other
            rest = phase.run(self._node)
        except Exception as caught:  # noqa: BLE001 whatever went wrong: the phase says how bad it is
            failure = caught
        if rest is None:
            self._note(phase, begun, waited, failure)
        return rest

    def _note(self, phase: Phase, begun: float, waited: str | None, failure: Exception | None) -> None:
        """The outcome of a phase: a log line, an event, an entry in boot.times, and what follows from a failure."""
        index, total = self._phases.index(phase) + 1, len(self._phases)
        status = "done" if failure is None else "skipped" if isinstance(failure, Skipped) else "failed"
        error = None if failure is None else str(failure) or type(failure).__name__
        milliseconds = round((boottime() - begun) * 1000, 1)
        outcome = {
            "name": phase.name, "index": index, "status": status, "milliseconds": milliseconds, "waited_for": waited,
            "error": error,
        }  # fmt: skip
        fields = {} if error is None else {"error" if status == "failed" else "reason": error}
        log.info(f"phase {index}/{total} {phase.name}: {status}, {milliseconds:.0f} ms", **fields)
        if phase.name not in self._noted:
            self._node.events.emit("phase", total=total, **outcome)
            start = round(begun - self._node.exec_at, 6)
            self._node.boot_phases.append(cast("BootPhase", {**outcome, "start": start}))
        self._failed.discard(phase.name)
        self._node.faults.pop(phase.name, None)
        if error is not None:
            self._failed.add(phase.name)
        if error is not None and status == "failed":
            self._node.faults[phase.name] = error
            if phase.fatal:
                log.error(f"maintenance: {phase.name} failed", error=error)
                self._node.enter("maintenance")
