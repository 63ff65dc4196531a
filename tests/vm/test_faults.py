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
def own(image: Bootable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Machine]]:
    """Return what gives the table's own machine, and boots it if it is off: it has a watchdog (the kernel's own, if
    that is asked for), a store for what the kernel says last, and a probe that no SIGTERM ends and that may take long.
    """
    deaf = manifests.probe(manifests.PROBE_PORT, "deaf", terminationGracePeriodSeconds=600)
    config = manifests.config(
        *(deaf, manifests.web()),
        extra=f"[kubelet.config]\npodPidsLimit = {rows.PIDS}\n[network]\ntimeout = 5\n"
        f"[node]\nshutdown_seconds = {rows.SHUTDOWN}\nrescue_seconds = {rows.RESCUE}\n"
        f"[watchdog]\nseconds = {rows.WATCHDOG}\nsoftware = true\n",
    )
    store = f"memory-backend-file,id=store,size=64K,share=on,mem-path={tmp_path_factory.mktemp('store') / 'erst'}"
    devices = ("-object", store, "-device", "acpi-erst,memdev=store")
    machine: Machine | None = None
    has_softdog = False

    def get(softdog: bool) -> Machine:
        nonlocal machine, has_softdog
        if machine is not None and (softdog != has_softdog or not machine.running):
            machine.kill()
            machine = None
        if machine is None:
            hardware = devices if softdog else (*devices, "-device", "i6300esb")
            options: dict[str, Any] = {"networks": (Network(forward=FORWARD),), "qemu_arguments": hardware}
            machine, has_softdog = Machine(f"faults-{os.getpid()}", image, config=config, **options), softdog
            machine.start()
        machine.wait_for("ready", 180.0)
        wait_for_pods(machine, "probe", "web")
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
    return pytest.param(row, id=row.name, marks=[] if row.quick else [pytest.mark.faults])


def do(name: str, scene: Scene, row: Row, lasting: contextlib.ExitStack) -> Any:
    """Do a fault until `lasting` ends. One that ends the machine is not undone, and may do so before it is done."""
    if not row.ends:
        return lasting.enter_context(faults.inject(name, scene.machine, scene.probe))
    with contextlib.suppress(OSError):
        return faults.FAULTS[name].do(scene.machine, scene.probe)
    return None


def run(row: Row, scene: Scene) -> None:
    """Do what a row says; raises AssertionError, or what pytest.fail raises, if it is not so."""
    with contextlib.ExitStack() as stack:
        scene.wake()
        scene.before = scene.look()
        if row.serves:
            stack.enter_context(serving(scene.machine))
        begin(scene, row)
        scene.seq = scene.machine.last_seq
        lasting = stack.enter_context(contextlib.ExitStack())
        asked = time.monotonic()
        scene.fault = do(row.fault, scene, row, lasting)
        if row.also:
            asked = time.monotonic()
            scene.also = do(row.also, scene, row, lasting)
        if row.passes:
            assert not scene.machine.wait_exit(row.passes), "QEMU ended"
            lasting.close()
            asked = time.monotonic()
        wait(row.happens, lambda: row.check(scene), row.bound - (time.monotonic() - asked))
        lasting.close()
        if row.ends:
            return
        if row.when == "running":
            wait("as before", lambda: scene.as_before(row.anew) or True, AS_BEFORE)
        else:
            wait("ready", lambda: rows.ready(scene), AS_BEFORE)


@pytest.mark.parametrize("row", [param(row) for row in ROWS])
def test_fault(row: Row, request: pytest.FixtureRequest) -> None:
    machine: Machine = request.getfixturevalue("own")(row.softdog) if row.own else request.getfixturevalue("running")
    scene = Scene(machine, Probe(machine))
    try:
        with explained(scene):
            run(row, scene)
    except BaseException:
        if row.own:
            machine.kill()  # as it is now, it is of no use to the next row
        raise
    if row.ends and machine.last_seq >= scene.seq:
        machine.kill()  # it was not started anew
