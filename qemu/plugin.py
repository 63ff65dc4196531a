"""pytest fixtures that boot nodes.

    pytest_plugins = ["qemu.plugin"]        # in conftest.py, where the package is not installed

    def test_ready(node):
        assert node.client().call("status")["ready"]

node: one ready machine for all tests that ask for it, which must leave it as they found it.
fresh_node: one like it for this test alone.
node_options: what both are made with; override it to give them another configuration or other hardware.
machine_factory: makes machines of any kind, not started; they are killed after the test.
cluster: a control plane that nodes join, shared by all tests that ask for it; it has no nodes of its own. Only a clone
    has one, which builds it.
image: what all of them boot.

When a test fails, its report has the end of each machine's console and the events of its node.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from qemu.cluster import Cluster
from qemu.image import Bootable, built
from qemu.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

READY_TIMEOUT = 180.0  # seconds from power-on to a healthy kubelet on a slow, busy host without KVM
MAX_MACHINES = 2  # each takes two CPUs and 2 GiB
_EVENTS_SHOWN = 60

_machines: list[Machine] = []  # that may run now
_clusters: list[Cluster] = []
_numbers = itertools.count(1)


class MachineFactory(Protocol):
    """Makes a machine; takes what Machine takes, except name."""

    def __call__(self, **options: Any) -> Machine: ...


@pytest.fixture(scope="session")
def image() -> Bootable:
    """The image that this tree builds."""
    return built()


@pytest.fixture(scope="session")
def node_options() -> dict[str, Any]:
    """What node and fresh_node are made with: arguments of Machine, except name."""
    return {}


@pytest.fixture(scope="session")
def node(image: Bootable, node_options: dict[str, Any]) -> Iterator[Machine]:
    """A machine whose node is ready, shared by all tests."""
    yield from _ready(image, **node_options)


@pytest.fixture
def fresh_node(image: Bootable, node_options: dict[str, Any]) -> Iterator[Machine]:
    """A machine of the test's own, whose node is ready."""
    yield from _ready(image, **node_options)


@pytest.fixture
def machine_factory(image: Bootable) -> Iterator[MachineFactory]:
    """Make machines for a test; start them with start() or a with statement."""
    made: list[Machine] = []

    def make(**options: Any) -> Machine:
        made.append(_made(**{"image": image, **options}))
        return made[-1]

    yield make
    for machine in made:
        _end(machine)


@pytest.fixture(scope="session")
def cluster(image: Bootable) -> Iterator[Cluster]:
    """A control plane on loopback that nodes join; see qemu.cluster."""
    with Cluster(f"test-{os.getpid()}", image) as made:
        _clusters.append(made)
        yield made
        _clusters.remove(made)


def _ready(image: Bootable, **options: Any) -> Iterator[Machine]:
    machine = _made(image=image, **options)
    try:
        machine.start()
        machine.wait_for("ready", READY_TIMEOUT)
        yield machine
    finally:
        _end(machine)


def _made(**options: Any) -> Machine:
    running = [machine.name for machine in _machines if machine.running]
    if len(running) >= MAX_MACHINES:
        pytest.fail(f"at most {MAX_MACHINES} machines at once; running: {', '.join(running)}")
    machine = Machine(f"test-{os.getpid()}-{next(_numbers)}", **options)
    _machines.append(machine)
    return machine


def _end(machine: Machine) -> None:
    machine.kill()
    _machines.remove(machine)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and {"node", "fresh_node", "machine_factory", "cluster"} & set(getattr(item, "fixturenames", ())):
        for machine in (*_machines, *(machine for cluster in _clusters for machine in cluster.machines.values())):
            report.sections.append((f"console of {machine.name}", machine.console_tail()))
            events = [event for boot in machine.journal.history() for event in boot][-_EVENTS_SHOWN:]
            report.sections.append((f"events of {machine.name}", "\n".join(json.dumps(event) for event in events)))
    return report
