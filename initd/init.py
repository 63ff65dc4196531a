"""PID 1: the early part, the loop, the end.

The early part runs without a loop and starts containerd and the workers before anything heavy is imported; the loop
then takes over what runs. Nothing raised anywhere below reaches the kernel: PID 1's exit would be its panic.
"""

from __future__ import annotations

import gc
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from initd import boot, log, native, phases
from initd.node import Node

if TYPE_CHECKING:
    import asyncio

REBOOT_AFTER = 10.0
FAILURE_CHARACTERS = 16 << 10
SIGNALS = 64  # that are read in one turn: real-time signals queue
DESCRIPTORS = 1 << 16  # the kernel's own 1024 could be used up by the API's clients

# Signal -> what it asks for, as systemd(1) documents them for PID 1.
REQUESTS = {
    signal.SIGINT: ("reboot", "Ctrl-Alt-Del"),
    signal.SIGPWR: ("shutdown", "power failure (SIGPWR)"),
    signal.SIGRTMIN + 4: ("shutdown", "signal SIGRTMIN+4"),
    signal.SIGRTMIN + 5: ("reboot", "signal SIGRTMIN+5"),
}
IGNORED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


def main() -> NoReturn:
    """Be PID 1. Never returns."""
    try:
        _run(resuming=sys.argv[1:2] == ["resume"])
    except BaseException as failure:  # noqa: BLE001 whatever it is: PID 1 must not exit
        _last_resort(failure)
    _last_resort(RuntimeError("the event loop ended"))


def _run(*, resuming: bool) -> None:
    # asyncio imports ssl if it can, which is 10 MB that neither PID 1 nor the workers have a use for.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    console = log.open_console()
    node = Node()
    last_life = None
    if resuming:
        from initd import resume  # noqa: PLC0415 the first life does without until containerd runs

        resume.guard(node, resuming=True)
        last_life = resume.restore(node)
    try:
        native.reboot(native.RebootCommand.CAD_OFF)  # Ctrl-Alt-Del is SIGINT to us, not an instant reset
    except OSError as error:
        log.warning("Ctrl-Alt-Del stays the kernel's", error=str(error))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    except (OSError, ValueError) as error:
        log.warning("descriptor limit stays the kernel's", error=str(error))
    signals = native.signalfd([signal.SIGCHLD, *REQUESTS])
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    sequence = phases.Sequence(node, boot.PHASES)
    sequence.early()
    _loop(node, console, signals, sequence, last_life)


def _loop(
    node: Node, console: log.Console, signals: int, sequence: phases.Sequence, last_life: dict[str, Any] | None
) -> None:
    import asyncio  # noqa: PLC0415 overlaps the start of containerd

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_task_failed)
    node.loop = loop
    console.attach(loop)
    loop.add_reader(signals, _on_signal, node, signals)
    for service in [*node.services.values(), *node.workers.values()]:
        service.attach(loop)
    if last_life is not None:
        from initd import resume  # noqa: PLC0415 see _run

        resume.adopt(node, last_life)
        loop.call_soon(native.resumed)  # to have come as far as the loop is to have succeeded
    _reap(node)  # what ended before signals were read
    node.spawn_task(sequence.finish(), "boot")
    gc.enable()
    loop.run_forever()


def _on_signal(node: Node, signals: int) -> None:
    try:
        for _ in range(SIGNALS):  # those that are queued beyond come in the next turn
            if (caught := native.read_signal(signals)) is None:
                break
            if caught.signo in REQUESTS:
                from initd import shutdown  # noqa: PLC0415 not needed before the end

                action, why = REQUESTS[caught.signo]
                sender = "" if caught.pid == 0 else f", from pid {caught.pid}"
                shutdown.request(node, action, by=f"{why}{sender}")
    finally:
        _reap(node)


def _reap(node: Node) -> None:
    # More than a batch: let the loop serve others in between. The kernel keeps one SIGCHLD, however many there were, so
    # that a turn has one batch; with a callback for the rest, each signal that comes meanwhile would add another one.
    if node.reaper.reap():
        signal.raise_signal(signal.SIGCHLD)


def _task_failed(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    failure = context.get("exception")
    if isinstance(failure, BaseException):
        log.exception(str(context.get("message", "a callback failed")), failure)
    else:
        log.error("event loop", problem=str(context.get("message")))


def _last_resort(failure: BaseException) -> NoReturn:
    """Say what happened, and begin another life; if there is none to be had, reap for a while, so that pods may end
    their work, and reboot.
    """
    report = type(failure).__name__
    try:
        import traceback  # noqa: PLC0415 rarely needed, and it costs the start of every boot

        report = "".join(traceback.format_exception(failure))[-FAILURE_CHARACTERS:]
        log.exception("PID 1 failed", failure)
        log.flush()
    except BaseException:  # noqa: BLE001, S110 no memory, or no disk to import from: the name must do
        pass
    try:
        native.restart(report)
        log.error("PID 1 cannot be resumed; rebooting", seconds=REBOOT_AFTER)
        end = time.monotonic() + REBOOT_AFTER
        while time.monotonic() < end:
            time.sleep(0.1)
            log.flush()
            while (pid := native.wait_any()) is not None:
                native.wait_pid(pid)
    except BaseException:  # noqa: BLE001, S110 nothing may keep the reboot from coming
        pass
    while True:
        native.reboot(native.RebootCommand.RESTART)
