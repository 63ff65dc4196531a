"""What people and programs see."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from initd.client import views
from initd.client.output import Style, clean, duration, size, table, to_json, to_yaml
from initd.supervise.states import State
from tests.unit.client_support import ANSWERS, EVENTS, STATUS

if TYPE_CHECKING:
    from initd.api import types

PLAIN = Style(io.StringIO())


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def colourful(monkeypatch: pytest.MonkeyPatch, columns: int = 120) -> Style:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    return Style(Terminal())


def test_columns_are_aligned() -> None:
    text = table(("NAME", "N"), [("a", 1), ("longer", None)], PLAIN)
    assert text.splitlines() == ["NAME    N", "a       1", "longer  -"]


def test_colour_is_for_terminals_and_never_when_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in table(("STATE",), [("running",)], PLAIN)
    style = colourful(monkeypatch)
    assert "\x1b[32mrunning\x1b[0m" in table(("STATE",), [("running",)], style)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style(Terminal()).colours


def test_every_state_of_a_service_has_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    style = colourful(monkeypatch)
    assert all(style.state(state.value).startswith("\x1b[") for state in State)


def test_lines_end_with_the_terminal_s(monkeypatch: pytest.MonkeyPatch) -> None:
    text = table(("NAME",), [("x" * 100,)], colourful(monkeypatch, columns=20))
    assert f"{'x' * 19}…" in text.splitlines()


@given(st.text())
def test_text_of_a_node_cannot_steer_the_terminal(text: str) -> None:
    shown = clean(text)
    assert not any(ord(char) < 32 and char != "\t" or 0x7F <= ord(char) < 0xA0 for char in shown)  # noqa: RUF021


def test_escape_sequences_are_taken_out_whole() -> None:
    assert clean("a\x1b[31mred\x1b[0m\x07") == "ared"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (12, "12 s"),
        (200, "3 min 20 s"),
        (5 * 3600 + 720, "5 h 12 min"),
        (2 * 86400 + 3 * 3600, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(5, "5 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (2 << 40, "2.0 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [{"x": 1, "y": None}, [], {}], "b": {"c": True}}, 'a:\n- x: 1\n  "y": null\n- []\n- {}\nb:\n  c: true'),
        (["a b", "/dev/vda", "on", "1e5", "a: b", ""], "- a b\n- /dev/vda\n- 'on'\n- \"1e5\"\n- 'a: b'\n- ''"),
        ([1.5, 1e-05, 1e22, float("inf"), float("nan")], "- 1.5\n- 1.0e-05\n- 1.0e+22\n- .inf\n- .nan"),
        ({"text": "a: 1\nb: 2\n"}, "text: |\n  a: 1\n  b: 2"),
        (b"\xffx", "\ufffdx"),
        (1.5, "1.5"),
    ],
)
def test_yaml(value: object, text: str) -> None:
    assert to_yaml(value) == text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_and_yaml_are_what_went_in(value: object) -> None:
    assert json.loads(to_json(value)) == value
    text = to_yaml(value)
    assert yaml.safe_load(f"{text}\n") == value
    assert not any(ord(char) < 32 and char != "\n" or 0x7F <= ord(char) < 0xA0 for char in text)  # noqa: RUF021


def test_events_are_lines() -> None:
    lines = [views.event(event, PLAIN) for event in EVENTS]
    assert lines == [
        "    0.500 phase    1/14 mounts: done, 12 ms",
        "    1.500 service  kubelet: running (ready)",
        "    2.500 node     running, ready",
        "    3.500 device   action=add devname=vda",
    ]
    images = {"monotonic": 4.5, "kind": "images", "images": [{"name": "a:1", "digest": "x"}, {"name": "b:1"}, "odd"]}
    assert views.event(images, PLAIN) == "    4.500 images   imported a:1, b:1"
    assert "7 dropped" in views.event({"dropped": 7}, PLAIN)
    assert views.event({**EVENTS[0], "status": "failed", "waited_for": "x", "error": "no disk"}, PLAIN).endswith(
        "mounts: failed, 12 ms, waited for x: no disk"
    )


def test_the_cluster_is_shown_below_the_node() -> None:
    node: types.NodeStatus = {**STATUS, "ready": True, "reasons": []}
    state: types.ClusterState = {
        "server": "https://10.0.2.2:6443",
        "joined": True,
        "ready": True,
        "cordoned": False,
        "reason": None,
    }

    def lines(**fields: Any) -> list[str]:
        return views.status({**node, "cluster": cast("Any", {**state, **fields})}, PLAIN).splitlines()[1:]

    assert lines() == ["  cluster  https://10.0.2.2:6443  Ready"]
    assert lines(cordoned=True, reason="may not: 403") == [
        "  cluster  https://10.0.2.2:6443  Ready  cordoned  may not: 403"
    ]
    assert lines(ready=False, reason="away") == ["  cluster  https://10.0.2.2:6443  NotReady"]
    assert lines(joined=False, ready=False) == ["  cluster  https://10.0.2.2:6443  not joined"]
    waits = {**node, "turn": {"by": "uid 0", "waits_for": "slot-0 is held by node-2"}}
    text = views.status(cast("types.NodeStatus", waits), PLAIN)
    assert text.endswith("\n  reboot, asked for by uid 0, waits: slot-0 is held by node-2")


def test_a_service_that_fails_is_shown_with_its_last_lines() -> None:
    text = views.services(ANSWERS["services"], PLAIN)
    assert "kubelet starts again in 2.5 s; its last lines:\n  bad flag" in text
    assert "exit status 1" in text


def test_the_boot_is_drawn_with_its_critical_path() -> None:
    times: types.BootTimes = ANSWERS["boot.times"]
    assert views.critical_path(times["phases"]) == ["var", "mounts"]
    mounts, disks, var, mark, legend = views.boot_times(times, PLAIN).splitlines()
    assert mounts.startswith("* mounts")
    assert disks.startswith("  disks")
    assert disks.endswith("skipped")
    assert var.endswith("after mounts")
    assert mounts.index("█") < var.index("█")
    assert mounts.count("█") == 10
    assert var.count("█") == 30
    assert mark.endswith("▲")
    assert legend.startswith("* critical path: mounts > var")
    assert "none" in views.boot_times({"exec": 0.0, "phases": [], "marks": {}}, PLAIN)


def test_a_loop_in_what_phases_say_they_waited_for_ends() -> None:
    phase: types.BootPhase = ANSWERS["boot.times"]["phases"][0]
    assert views.critical_path([{**phase, "waited_for": "mounts"}]) == ["mounts"]
