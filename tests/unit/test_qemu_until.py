"""What `--until` and wait_for() understand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import initd
from initd.api.types import Event
from qemu.errors import HarnessError
from qemu.until import FIELDS, condition

SOURCES = Path(initd.__file__).parent.rglob("*.py")
EMITTED = {kind for path in SOURCES for kind in re.findall(r'\.emit\(\s*"(\w+)"', path.read_text(encoding="utf-8"))}
READY = {"kind": "node", "phase": "running", "ready": True}


@pytest.mark.parametrize(
    ("text", "event", "holds"),
    [
        ("ready", READY, True),
        ("ready", READY | {"ready": False}, False),
        ("ready", {"kind": "network", "ready": True}, False),
        ("node:maintenance", READY | {"phase": "maintenance"}, True),
        ("node:maintenance", READY, False),
        ("phase:var", {"kind": "phase", "name": "var", "status": "done"}, True),
        ("phase:var", {"kind": "phase", "name": "var", "status": "failed"}, False),
        ("phase:var:failed", {"kind": "phase", "name": "var", "status": "failed"}, True),
        ("phase:var", {"kind": "phase", "name": "dev", "status": "done"}, False),
        ("service:kubelet:running", {"kind": "service", "name": "kubelet", "state": "running"}, True),
        ("service:kubelet:running", {"kind": "service", "name": "kubelet", "state": "starting"}, False),
        ("service:kubelet", {"kind": "service", "name": "kubelet", "state": "starting"}, True),
        ("network", {"kind": "network", "ready": True, "address": "10.0.2.15"}, True),
        ("network", {"kind": "network", "ready": False}, False),
        ("shutdown", {"kind": "shutdown", "action": "reboot"}, True),
        ("shutdown:reboot", {"kind": "shutdown", "action": "shutdown"}, False),
        ("device:block:add", {"kind": "device", "subsystem": "block", "action": "add"}, True),
        ("device:block:add", {}, False),
    ],
)
def test_condition(text: str, event: dict[str, Any], holds: bool) -> None:
    assert condition(text)(event) is holds


@pytest.mark.parametrize("text", ["", "steady", "phase:", "service:kubelet:", "service:a:b:c", "node:running:now", ":"])
def test_a_condition_that_is_none_names_those_that_are(text: str) -> None:
    with pytest.raises(HarnessError) as caught:
        condition(text)
    assert repr(text) in caught.value.message
    assert all(kind in caught.value.hint for kind in FIELDS)


def test_every_kind_is_one_that_the_node_emits_and_documents() -> None:
    documented = set(re.findall(r"(?:^    |; )(\w+): ", Event.__doc__ or "", re.MULTILINE))
    assert set(FIELDS) == documented == EMITTED
