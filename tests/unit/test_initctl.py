"""initctl as it is used: words in, lines and an exit status out."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from initd.api.registry import Role
from initd.client import completion, live
from initd.client.commands import COMMANDS, OTHERS, Command
from initd.client.connection import Client
from initd.client.initctl import main
from tests.unit.client_support import ANSWERS, EVENTS, FakeNode, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with serving(tmp_path) as fake:
        yield fake


def make_vm(runtime: Path) -> None:
    folder = runtime / "initd" / "vms" / "default"
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text(json.dumps({"name": "default", "pid": os.getpid(), "started": 0}))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("version", "kernel:  6.12"),
        (
            "status",
            "identity persistent  time synchronized from 192.0.2.123\n  ! kubelet: not healthy yet",
        ),
        ("services", "containerd  running"),
        ("service restart kubelet", "restarting"),
        ("events", "1/14 mounts: done, 12 ms"),
        ("logs kubelet --tail 5", "started red"),
        ("dmesg", "[    0.100000] oops"),
        ("mounts", "/       erofs  /dev/vda1  ro, nodev  shared:1"),
        ("processes", "20.0 MiB"),
        ("links", "10.0.2.15/24"),
        ("pods", "default/web    10.88.0.2  http       running"),
        ("images", "pause:3.10"),
        ("disks", "initd-root-a"),
        ("config", "# error: node.nmae: unknown key\n[node]"),
        ("config schema", '"type": "object"'),
        ("boot-times", "critical path: mounts > var"),
        ("last-boot", "the last boot's end: panic\nKernel panic - not syncing: sysrq"),
        ("reboot --force", "within 30 s"),
        ("reboot --coordinated", "the node reboots when its turn has come: see `initctl status`"),
        ("shutdown", "within 1 min 30 s"),
        ("call status", '"name": "node-1"'),
        ("call events 3 false", '"seq": 4'),
        ("call service.restart kubelet", "true"),
    ],
)
def test_each_command_shows_what_the_node_answers(
    node: FakeNode, capsys: pytest.CaptureFixture[str], words: str, shown: str
) -> None:
    assert main(["--socket", node.path, *words.split()]) == 0
    assert shown in capsys.readouterr().out


def test_options_reach_the_node_and_are_taken_before_and_after_the_command(node: FakeNode) -> None:
    assert main(["--socket", node.path, "logs", "-f", "kubelet", "--tail", "7"]) == 0
    assert main(["reboot", "--force", "--url", f"unix://{node.path}"]) == 0
    assert main(["shutdown", "--socket", node.path]) == 0
    assert node.calls == [("logs", "kubelet", 7, True), ("reboot", True, False), ("shutdown", False)]


SIMPLE = [command for command in COMMANDS if not command.streaming and not command.arguments]


@pytest.mark.parametrize("command", SIMPLE, ids=[command.method for command in SIMPLE])
def test_json_is_the_answer_itself(node: FakeNode, capsys: pytest.CaptureFixture[str], command: Command) -> None:
    assert main([*command.words.split(), "--socket", node.path, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWERS[command.method]


def test_a_stream_as_json_is_one_object_a_line_and_as_yaml_documents(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["events", "--socket", node.path, "--output", "json"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == EVENTS
    main(["events", "--since", "2", "--socket", node.path, "--output", "yaml"])
    assert capsys.readouterr().out.startswith("---\nseq: 3\ntime: 3.0\n")


def test_the_node_s_error_is_one_line_and_status_1(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "restart", "x", "--socket", node.path]) == 1
    assert capsys.readouterr().err == "initctl: no service named 'x'; there are containerd, kubelet (NOT_FOUND)\n"


def test_without_the_role_the_error_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, Role.READER) as node:
        assert main(["reboot", "--socket", node.path]) == 1
    error = capsys.readouterr().err
    assert "wants the role admin" in error
    assert "run it as root on the node" in error
    assert len(error.splitlines()) == 1


def test_on_a_node_there_is_no_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "qemu", None)
    assert main(["status", "--vm", "default"]) == 3
    assert "the harness is not installed beside this initctl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["status", "--socket", "/nowhere/api.sock"], 3, "no such socket"),
        (["status", "--vm", "other"], 3, "no VM named other; running: none"),
        (["status", "--vm", "../vms"], 2, "found VM name '../vms', expected a letter"),
        (["status", "--url", "http://x"], 2, "found 'http://x', expected"),
        (["completion", "tcsh"], 2, "expected bash, zsh, fish"),
    ],
)
def test_where_there_is_no_node_the_next_step_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    text: str,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(words) == status
    error = capsys.readouterr().err
    assert error.startswith("initctl: ")
    assert text in error
    assert len(error.splitlines()) == 1


def test_without_an_address_running_vms_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("initd.client.initctl.DEFAULT_SOCKET", str(tmp_path / "none"))
    assert main(["status"]) == 3
    assert "make boot" in capsys.readouterr().err
    make_vm(tmp_path)
    assert main(["status"]) == 3
    assert "--vm NAME; running: default" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["frobnicate"], ["service"], ["logs"], ["events", "--since", "x"], ["status", "--output", "xml"]]
)
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: initctl" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-5", "1.5", "1_0", "٣", "9" * 19, ""])
@pytest.mark.parametrize(("words", "option"), [(["logs", "x"], "--tail"), (["events"], "--since")])
def test_a_number_that_is_none_is_named_with_its_option(
    words: list[str], option: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, option, number])
    assert caught.value.code == 2
    assert f"argument {option}: found {number!r}, expected a whole number, 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["se"], ["services", "service"]),
        (["service", ""], ["restart", "--output", "--socket", "--vm", "--url"]),
        (["--vm", "x", "logs", "ku"], ["kubelet"]),
        (["logs", "kubelet", "--t"], ["--tail"]),
        (["logs", "-f", "-"], ["--tail", "-f", "--follow", "--output", "--socket", "--vm", "--url"]),
        (["--output", "j"], ["json"]),
        (["call", "service."], ["service.restart"]),
        (["config", "s"], ["schema"]),
        (["--socket", ""], []),
        (["unknown", "x"], []),
        (["--vm", ""], ["default"]),
    ],
)
def test_completion_offers_what_may_come_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    offered: list[str],
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    make_vm(tmp_path)
    assert main(["__complete", *words]) == 0
    assert capsys.readouterr().out.split() == offered


def test_completion_knows_every_command_and_option() -> None:
    for command in (*COMMANDS, *OTHERS):
        words = command.words.split()
        assert words[-1] in completion.offers([*words[:-1], words[-1][:1]])
        offered = completion.offers([*words, ""])
        assert all(option in offered for argument in command.arguments for option in argument.options)


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_live_view_shows_node_services_pods_and_events(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("LINES", "40")
    screen = Terminal()
    live.watch(lambda: Client(node.path), screen, lambda: "devname=vda" in screen.getvalue())
    frame = screen.getvalue().split("\x1b[J")[-1]
    for text in ("node-1  10.0.2.15", "containerd  running", "default/web", "kubelet: running (ready)", "devname=vda"):
        assert text in frame
    assert "A\r\x1b[J" in screen.getvalue(), "drawn over in place"
    assert screen.getvalue().endswith("\x1b[?7h")


def test_the_live_view_writes_events_as_lines_where_there_is_no_terminal(node: FakeNode) -> None:
    out = io.StringIO()
    live.watch(lambda: Client(node.path), out, lambda: "devname" in out.getvalue())
    assert len(out.getvalue().splitlines()) == len(EVENTS)
    assert "\x1b" not in out.getvalue()


def test_the_live_view_writes_no_event_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RETRY_SECONDS", 0.0)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    out = io.StringIO()
    with serving(tmp_path / "first") as first, serving(tmp_path / "second") as second:
        addresses = iter([first.path, second.path])

        def until() -> bool:
            if "devname" in out.getvalue() and ("stopped",) not in first.calls:
                first.calls.append(("stopped",))
                first.stop()
            return ("events", len(EVENTS)) in second.calls

        live.watch(lambda: Client(next(addresses)), out, until, since=2)
    lines = [line for line in out.getvalue().splitlines() if "waiting for the node" not in line]
    assert len(lines) == len(EVENTS) - 2


def test_the_live_view_waits_for_a_node_that_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RETRY_SECONDS", 0.0)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    out = io.StringIO()
    with serving(tmp_path / "first") as first, serving(tmp_path / "second") as second:
        addresses = iter([first.path, str(tmp_path / "gone"), second.path])

        def until() -> bool:
            if out.getvalue().count("devname") == 1:
                monkeypatch.setitem(ANSWERS["version"], "boot_id", "another")
                first.stop()
            return out.getvalue().count("devname") == 2

        live.watch(lambda: Client(next(addresses)), out, until)
    assert "waiting for the node" in out.getvalue()
    assert "there is no such socket" in out.getvalue()
