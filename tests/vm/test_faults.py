"""The table of faults (tests/vm/rows.py), row by row: `make test` runs the quick ones, `make test-faults` all."""

from __future__ import annotations

import contextlib
import http
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from initd.api.protocol import ApiError
from qemu import faults
from qemu.errors import HarnessError
from qemu.machine import Machine
from qemu.net import Network
from qemu.probe import Probe, http_get
from tests.vm import manifests, rows
from tests.vm.conftest import FORWARD, wait_for_pods
from tests.vm.rows import ROWS, Row, Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qemu.image import Bootable

AS_BEFORE = 90.0  # seconds, for pods that come back after the kubelet's own back-off
POLL = 0.1


@pytest.fixture(scope="module")
def own(image: Bootable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Machine]]:
    """Return what gives the table's own machine, and boots it if it is off: it has a watchdog, a store for what the
    kernel says last, and a probe that no SIGTERM ends and that may take ten minutes.
    """
    deaf = manifests.probe(manifests.PROBE_PORT, "deaf", terminationGracePeriodSeconds=600)
    config = manifests.config(
        deaf,
        extra=f"[kubelet.config]\npodPidsLimit = {rows.PIDS}\n[node]\nshutdown_seconds = {rows.SHUTDOWN}\n"
        f"[network]\ntimeout = 5\n[watchdog]\nseconds = {rows.WATCHDOG}\n",
    )
    store = f"memory-backend-file,id=store,size=64K,share=on,mem-path={tmp_path_factory.mktemp('store') / 'erst'}"
    devices = ("-device", "i6300esb", "-object", store, "-device", "acpi-erst,memdev=store")
    machine: Machine | None = None

    def get() -> Machine:
        nonlocal machine
        if machine is None or not machine.running:
            if machine is not None:
                machine.kill()
            options: dict[str, Any] = {"networks": (Network(forward=FORWARD),), "qemu_arguments": devices}
            machine = Machine(f"faults-{os.getpid()}", image, config=config, **options)
            machine.start()
        machine.wait_for("ready", 180.0)
        wait_for_pods(machine, "probe")
        return machine

    yield get
    if machine is not None:
        machine.kill()


@contextlib.contextmanager
def serving(machine: Machine) -> Iterator[None]:
    """Ask the web pod without a pause; raises AssertionError at the end if a request failed."""
    port = machine.port(manifests.WEB_PORT)
    wait("the web pod answers", lambda: http_get(port, "/")[0] == http.HTTPStatus.OK, AS_BEFORE)
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.05):
            try:
                status, _ = http_get(port, "/")
            except OSError as error:
                failures.append(str(error))
            else:
                if status != http.HTTPStatus.OK:
                    failures.append(f"status {status}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


@contextlib.contextmanager
def explained(scene: Scene) -> Iterator[None]:
    """Print the console's end and what the API says of itself and its services when the body fails."""
    try:
        yield
    except BaseException:
        print(scene.machine.console_tail())
        with contextlib.suppress(OSError, ApiError, HarnessError):
            now = scene.look()
            print(json.dumps(now["status"]))
            for name, service in now["services"].items():
                print(name, *(json.dumps(entry) for entry in service["history"]), sep="\n  ")
        raise


def wait(what: str, check: Callable[[], Any], seconds: float) -> None:
    """Wait until check() is True, for so many seconds; a node that does not answer is no."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            last = check()
        except (OSError, ApiError, HarnessError) as error:
            last = error
        if last is True:
            return
        time.sleep(POLL)
    pytest.fail(f"{what}: not within {seconds:.1f} s; last: {last}")


def begin(scene: Scene, row: Row) -> None:
    """Bring the machine to where the row's fault comes."""
    if row.when == "booting":
        scene.machine.reset()
        wait("a reset", lambda: scene.machine.last_seq == 0, 10.0)
        if row.after:
            scene.machine.wait_for(row.after, rows.BOOT)
    elif row.when != "running":
        with scene.machine.client() as client:
            client.call("reboot" if row.when == "rebooting" else "shutdown")


def param(row: Row) -> Any:
    """Return a row as pytest wants it."""
    marks = [] if row.quick else [pytest.mark.faults]
    if row.bug:
        marks.append(pytest.mark.xfail(strict=True, reason=row.bug))
    return pytest.param(row, id=row.name, marks=marks)


@pytest.mark.parametrize("row", [param(row) for row in ROWS])
def test_fault(row: Row, request: pytest.FixtureRequest) -> None:
    machine: Machine = request.getfixturevalue("own")() if row.own else request.getfixturevalue("running")
    scene = Scene(machine, Probe(machine))
    with explained(scene), contextlib.ExitStack() as stack:
        scene.wake()
        scene.before = scene.look()
        if row.serves and not row.own:
            stack.enter_context(serving(machine))
        begin(scene, row)
        scene.seq = machine.last_seq
        lasting = stack.enter_context(contextlib.ExitStack())
        asked = time.monotonic()
        if row.ends:  # what the fault did goes with the machine; it may be gone before the fault is done
            with contextlib.suppress(OSError):
                scene.fault = faults.FAULTS[row.fault].do(machine, scene.probe)
        else:
            scene.fault = lasting.enter_context(faults.inject(row.fault, machine, scene.probe))
        if row.also:
            scene.also = lasting.enter_context(faults.inject(row.also, machine, scene.probe))
        if row.passes:
            assert not machine.wait_exit(row.passes), "QEMU ended"
            lasting.close()
            asked = time.monotonic()
        wait(row.happens, lambda: row.check(scene), row.bound - (time.monotonic() - asked))
        if row.ends:
            return
        lasting.close()
        if row.when == "running":
            wait("as before", lambda: scene.as_before(row.anew) or True, AS_BEFORE)
        else:
            wait("ready", lambda: rows.ready(scene), AS_BEFORE)
