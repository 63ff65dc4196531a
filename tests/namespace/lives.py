"""A PID 1 of a namespace whose lives the tests in test_resume.py follow: `lives.py PROGRAM [resume]`, what happens in
which life stands in the variable LIVES. What it prints is what they look at.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from initd import native

LIFE = int(os.environ.get("LIFE", "1"))
RESCUE = b'#!/bin/sh\necho "rescued: $1"\n'


def child(run: object) -> int:
    """Fork a child that runs the function and ends; return its pid."""
    pid = os.fork()
    if pid == 0:
        assert callable(run)
        run()
        os._exit(7)
    return pid


def crash() -> None:
    ctypes.string_at(0)


def crash_twice() -> None:
    """A fault whose traceback is one too: the name of this function's file lies nowhere."""
    code = crash_twice.__code__
    words = (ctypes.c_size_t * 40).from_address(id(code))
    words[[*words].index(id(code.co_filename))] = 8
    crash()


def others() -> None:
    """Faults that are none of this process."""
    print("fork:", os.waitstatus_to_exitcode(os.waitpid(child(crash), 0)[1]), flush=True)
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        os.waitpid(child(lambda number=number: os.kill(1, number)), 0)
    print("survived", flush=True)


def main() -> None:
    program, resuming = sys.argv[1], sys.argv[2:] == ["resume"]
    assert os.getpid() == 1
    print(f"life {LIFE} resuming={resuming}", flush=True)
    if LIFE == 1:
        os.environ["REPORT"] = str(os.memfd_create("report"))
    report = int(os.environ["REPORT"])
    if resuming:
        print(os.pread(report, 1 << 16, 0).decode().replace("\n", " | "), flush=True)
        os.ftruncate(report, 0)
        os.lseek(report, 0, os.SEEK_SET)
    native.survive(program, report, resuming=resuming)
    rescue = os.memfd_create("rescue", 0)
    os.write(rescue, RESCUE)
    kept, lost = os.memfd_create("kept"), os.memfd_create("lost")
    if not resuming:  # later lives fail before they have said what they keep
        native.keep([report, kept, rescue], rescue)
    os.environ["LIFE"] = str(LIFE + 1)
    match os.environ["LIVES"].split()[LIFE - 1]:
        case "crash":
            native.resumed()
            crash()
        case "crash-early":
            crash()
        case "crash-twice":
            native.resumed()
            crash_twice()
        case "abort":
            native.resumed()
            os.abort()
        case "restart":
            native.resumed()
            native.restart("an exception at the top")
        case "with-a-child":
            os.environ["CHILD"] = str(child(signal.pause))
            os.environ["KEPT"], os.environ["LOST"] = str(kept), str(lost)
            os.write(kept, b"still here")
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            os.kill(1, signal.SIGUSR1)
            native.resumed()
            crash()
        case "look":
            print(os.pread(int(os.environ["KEPT"]), 64, 0).decode(), flush=True)
            link = f"/proc/self/fd/{os.environ['LOST']}"
            print("lost is open" if os.path.exists(link) and "lost" in os.readlink(link) else "lost is closed")
            print("pending:", signal.sigpending(), flush=True)
            os.kill(int(os.environ["CHILD"]), signal.SIGKILL)
            print("child:", os.waitstatus_to_exitcode(os.waitpid(int(os.environ["CHILD"]), 0)[1]), flush=True)
        case "others":
            others()
    print("end", flush=True)


main()
