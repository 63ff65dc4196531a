"""native/rescue.c: what PID 1 becomes when it cannot go on."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from initd.api.protocol import Code
from initd.api.types import NodeStatus, VersionInfo
from tests.bench.programs import compiled
from tests.namespace.rescue_process import (
    DEADLINE,
    POWER_OFF,
    REBOOT,
    Rescue,
    code,
    exchange,
    fill,
    program,
    read_until,
    sealed,
    until,
)
from tests.namespace.test_native_programs import NATIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

CONNECTIONS = 16
ENDS = {signal.SIGINT: REBOOT, signal.SIGPWR: POWER_OFF, signal.SIGRTMIN + 4: POWER_OFF, signal.SIGRTMIN + 5: REBOOT}
LIMIT = 12  # descriptors
IGNORED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


@pytest.fixture
def rescue(tmp_path: Path) -> Iterator[Rescue]:
    """To be started by the test."""
    made = Rescue(tmp_path, program())
    yield made
    made.close()


def test_it_refuses_to_be_any_other_process(tmp_path: Path) -> None:
    copy = tmp_path / "rescue"
    copy.write_bytes(os.pread(program(), 1 << 24, 0))
    copy.chmod(0o755)
    done = subprocess.run([copy], capture_output=True, check=False, text=True)
    assert (done.returncode, "PID 1" in done.stderr) == (1, True)


def test_it_says_what_happened(rescue: Rescue) -> None:
    rescue.start(
        b"x" * 5000 + b"\n\x1b[31m\xff OSError: [Errno 5]", {"INITD_RESCUE_SECONDS": "77", "INITD_CRASHES": "12 3 0 "}
    )
    for descriptor, start in ((rescue.console, "\r\n"), (rescue.kmsg, "<2>")):
        text = read_until(descriptor, r"12 3 0")
        assert re.search(rf"{start}initd rescue: x+ \?\[31m\? OSError: \[Errno 5\]; reboot in 77 s\r?\n", text)
        assert max(map(len, text.splitlines())) < 900, "the kernel refuses longer records"
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    status = rescue.call("status")
    assert set(status) == set(NodeStatus.__annotations__)
    assert (status["name"], status["phase"], status["ready"]) == ("node-1", "rescue", False)
    assert (status["address"], status["config_source"]) == (None, None)
    assert (status["failures"], status["shutdown"]) == ([], None)
    reason, when = status["reasons"]
    assert reason.endswith("xxx ?[31m? OSError: [Errno 5]")
    assert re.fullmatch(r"reboots in (7[0-7]) s", when)
    assert status["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert before - 0.01 <= status["uptime_seconds"] <= time.clock_gettime(time.CLOCK_BOOTTIME)
    version = rescue.call("version")
    assert set(version) == set(VersionInfo.__annotations__)
    assert (version["kernel"], version["boot_id"]) == (os.uname().release, status["boot_id"])
    with rescue.connect() as connection:
        assert code(exchange(connection, "services")) == Code.UNAVAILABLE


def test_it_repeats_what_happened(rescue: Rescue, tmp_path: Path) -> None:
    """The same source, whose minute is 300 ms."""
    source = (NATIVE / "rescue.c").read_text()
    assert "REPORT_EVERY = 60 * SECOND" in source
    (tmp_path / "fast.c").write_text(source.replace("REPORT_EVERY = 60 * SECOND", "REPORT_EVERY = 300"))
    command: list[str | Path] = [
        "gcc",
        "-std=c17",
        "-static",
        f"-I{NATIVE}",
        tmp_path / "fast.c",
        "-o",
        tmp_path / "fast",
    ]
    subprocess.run(command, check=True)
    rescue._program = sealed(tmp_path / "fast")
    rescue.start()
    os.close(rescue._program)
    read_until(rescue.console, "(a test; reboot in .*){3}")
    read_until(rescue.kmsg, "(a test; reboot in .*){3}")


@pytest.mark.parametrize(
    ("listener", "watchdog", "pipes", "seconds", "said"),
    [
        ("", "", "", "", "INITD_LISTENER: found , expected a number"),
        ("x", "", "", "soon", "INITD_RESCUE_SECONDS: found soon, expected a number"),
        ("1 x", "99", "", "1", "INITD_WATCHDOG: descriptor 99 cannot be used"),
        ("", "", " 1e9 77  99999999999999999999 -1", "9x", "INITD_PIPES: found -1, expected a number"),
        ("2", "", "", "-7", "INITD_LISTENER: descriptor 2 does not listen"),
        ("", "2", "2", "", "INITD_PIPES: descriptor 2 cannot be used"),
        ("", "", "2 2", "99999999999", "INITD_PIPES: descriptor 2 cannot be used"),
    ],
)
def test_it_does_without_what_is_wrong(
    rescue: Rescue, listener: str, watchdog: str, pipes: str, seconds: str, said: str
) -> None:
    values = {"LISTENER": listener, "WATCHDOG": watchdog, "PIPES": pipes, "RESCUE_SECONDS": seconds}
    rescue.start(b"", {f"INITD_{name}": value for name, value in values.items()})
    text = read_until(rescue.console, re.escape(said))
    rescue.signal(signal.SIGINT)
    text += read_until(rescue.console, r"reboot, asked for by (signal 2 from pid 0|INITD_RESCUE_SECONDS)")
    assert f"reboot in {1 if seconds == '1' else 300} s" in text
    assert rescue.wait() == REBOOT


def test_it_does_without_what_is_missing(rescue: Rescue) -> None:
    rescue.start()
    assert "INITD_WATCHDOG" not in read_until(rescue.console, "INITD_PIPES: found nothing"), "few machines have one"
    assert rescue.call("status")["phase"] == "rescue"


def test_many_pipes_are_too_many(rescue: Rescue) -> None:
    source, sink = os.pipe()
    copies = tuple(os.dup(source) for _ in range(130))
    rescue.start(pipes=copies)
    for descriptor in (source, sink, *copies):
        os.close(descriptor)
    read_until(rescue.console, "found more than 128")
    assert rescue.call("status")["phase"] == "rescue"


def test_it_resets_what_pid_1_did_with_signals(rescue: Rescue) -> None:
    rescue.start()
    rescue.call("status")
    found = dict(re.findall(r"(Sig\w+):\t(\w+)", Path(f"/proc/{rescue.pid}/status").read_text()))

    def mask(*numbers: int) -> int:
        return sum(1 << (number - 1) for number in numbers)

    assert int(found["SigIgn"], 16) == mask(*IGNORED)
    assert int(found["SigBlk"], 16) == mask(signal.SIGCHLD, *ENDS)
    assert int(found["SigCgt"], 16) == 0


@pytest.mark.parametrize(("number", "end"), ENDS.items())
def test_signals_mean_what_they_mean_to_pid_1(rescue: Rescue, number: int, end: int) -> None:
    rescue.start()
    for other in signal.valid_signals() - set(ENDS) - {signal.SIGKILL, signal.SIGSTOP}:
        rescue.signal(other)
    assert rescue.call("status")["phase"] == "rescue"
    rescue.signal(number)
    assert rescue.wait() == end


def test_the_deadline_reboots(rescue: Rescue) -> None:
    start = time.monotonic()
    rescue.start(env={"INITD_RESCUE_SECONDS": "2"})
    assert rescue.wait() == REBOOT
    assert 2.0 <= time.monotonic() - start < 2 + 1 + 1 + 2, (
        "the deadline, a second of poll(2), one of sync, and a slow host"
    )


def test_there_may_be_no_deadline(rescue: Rescue) -> None:
    rescue.start(env={"INITD_RESCUE_SECONDS": "0"})
    assert rescue.call("status")["reasons"] == ["a test", "waits to be rebooted"]


@pytest.mark.parametrize(("method", "end"), [("reboot", REBOOT), ("shutdown", POWER_OFF)])
def test_the_api_ends_it(rescue: Rescue, method: str, end: int) -> None:
    rescue.start()
    with rescue.connect() as connection:
        assert exchange(connection, method, True).result == 0.0
    assert rescue.wait() == end
    read_until(rescue.kmsg, r"asked for by uid 0 pid \d+\n")


def test_a_reboot_that_fails_is_tried_again(rescue: Rescue) -> None:
    rescue.start(may_reboot=False)
    with rescue.connect() as connection:
        assert code(exchange(connection, "reboot")) is None
    read_until(rescue.kmsg, "(reboot: EPERM.*){2}")
    assert rescue.call("status")["phase"] == "rescue"


def test_orphans_are_reaped(rescue: Rescue, tmp_path: Path) -> None:
    """More than a batch; each one's parent has ended before, so only process 1 can reap it."""
    rescue.start()
    children = Path(f"/proc/{rescue.pid}/task/{rescue.pid}/children")
    orphans = compiled("orphans", tmp_path)
    source, sink = os.pipe()
    command = (orphans, "1500", "0")
    made = rescue.inside(lambda: subprocess.run(command, stdin=source, capture_output=True, check=True).stdout)
    os.close(source)
    assert made.split()[0] == b"1500"
    assert len(children.read_text().split()) == 1500
    os.close(sink)  # all end at once
    start = time.monotonic()
    until(lambda: not children.read_text(), "there are zombies")
    assert time.monotonic() - start < 5
    assert rescue.call("status")["phase"] == "rescue"


def test_output_is_drained_and_ends(rescue: Rescue) -> None:
    pipes = [os.pipe() for _ in range(3)]
    rescue.start(pipes=tuple(source for source, _ in pipes))
    for source, sink in pipes:
        os.close(source)
        os.set_blocking(sink, False)
    flood = bytes(1 << 20)
    left = {sink: 8 * len(flood) for _, sink in pipes}
    end = time.monotonic() + DEADLINE
    while any(left.values()):
        wanting = [sink for sink, size in left.items() if size]
        _, ready, _ = select.select([], wanting, [], max(end - time.monotonic(), 0))
        assert ready, "a writer is blocked"
        for sink in ready:
            left[sink] -= os.write(sink, flood[: left[sink]])
    (_, first), *others = pipes
    opened = Path(f"/proc/{rescue.pid}/fd")
    before = len(os.listdir(opened))
    os.close(first)
    until(lambda: len(os.listdir(opened)) == before - 1, "the closed pipe is kept")
    for _, sink in others:
        os.write(sink, b"not broken")
        os.close(sink)
    until(lambda: len(os.listdir(opened)) == before - 3, "the closed pipes are kept")
    assert rescue.call("status")["phase"] == "rescue"


def test_the_watchdog_is_fed(rescue: Rescue) -> None:
    source, sink = os.pipe()
    rescue.start(watchdog=sink)
    times: list[float] = []
    while len(times) < 4:
        assert select.select([source], [], [], DEADLINE)[0], "the watchdog starves"
        os.read(source, 1)
        times.append(time.monotonic())
    assert times[3] - times[2] < 2 + 1 + 1, "two seconds, one of poll(2), and a slow host"
    fill(sink)  # not even a watchdog may block it
    assert rescue.call("status")["phase"] == "rescue"
    os.close(source)
    assert rescue.call("status")["phase"] == "rescue"
    os.close(sink)


def test_a_console_that_nobody_reads_does_not_hold_it_up(rescue: Rescue) -> None:
    fill(rescue.console)
    fill(rescue.kmsg)
    rescue.start()
    assert rescue.call("status")["phase"] == "rescue"


def test_few_descriptors_are_enough(rescue: Rescue) -> None:
    """With a limit lower than what poll(2) is given it fails each time; everything is tried without it."""
    source, sink = os.pipe()
    rescue.start(pipes=(source,), limits={resource.RLIMIT_NOFILE: (LIMIT, LIMIT)})
    os.close(source)
    os.set_blocking(sink, False)
    fill(sink)
    assert select.select([], [sink], [], DEADLINE)[1]
    assert rescue.call("status")["phase"] == "rescue"
    with ExitStack() as stack:
        # As many as there are places, more than there are descriptors.
        clients = [stack.enter_context(rescue.connect_from_outside()) for _ in range(CONNECTIONS)]
        until(lambda: len(os.listdir(f"/proc/{rescue.pid}/fd")) == LIMIT, "it has descriptors left")
        for _ in range(2):  # between two answers it has tried to accept the next one
            exchange(clients[0], "status")
    assert rescue.call("status")["phase"] == "rescue"
    os.close(sink)
