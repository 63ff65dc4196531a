"""The live view of a cluster, from what its API server answers."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from qemu.cluster import live
from qemu.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(*rows: tuple[dict[str, Any], tuple[object, ...]]) -> dict[str, Any]:
    columns = [{"name": name} for name in ("Name", "Status", "Age")]
    return {"columnDefinitions": columns, "rows": [{"object": object_, "cells": cells} for object_, cells in rows]}


def node(ready: str) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": ready, "message": "no network"}]}
    return table(({"metadata": {"name": "node-1"}, "spec": {}, "status": status}, ("node-1", "NotReady", "5s")))


def pod() -> dict[str, Any]:
    metadata = {"name": "web", "namespace": "default"}
    return table(({"metadata": metadata, "spec": {}, "status": {"phase": "Pending"}}, ("web", "Pending", None)))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_SECONDS", 0.0)


def watch(
    file: io.StringIO, folder: Path, *answers: tuple[Any, Any] | OSError, check: Callable[[str], object] = str
) -> list[str]:
    """Watch a cluster that answers so, the last time before it ends; return the lines without their times."""
    left, tables = list(answers), list[Any]()

    def ask(path: str) -> Any:
        if path.endswith("nodes"):
            tables[:] = [left.pop(0)]
            if isinstance(tables[0], OSError):
                raise tables[0]
        return tables[0][path.endswith("pods")]

    plane = SimpleNamespace(api=SimpleNamespace(table=ask), check=check, programs=folder / "programs")
    cluster: Any = SimpleNamespace(control_plane=plane)
    live.watch(cluster, file, lambda: not left)
    return [line.partition(" ")[2] for line in file.getvalue().splitlines()]


def test_each_change_is_a_line(tmp_path: Path) -> None:
    away = ConnectionRefusedError("refused")
    said = watch(
        io.StringIO(), tmp_path, (node("False"), pod()), away, away, (node("True"), pod()), (node("True"), table())
    )
    assert said == [
        "node node-1: not ready: no network",
        "pod default/web (no node yet): pending",
        "API server: refused",
        "API server: answers",
        "node node-1: ready",
        "pod default/web (no node yet): gone",
    ]


def test_a_terminal_shows_tables_and_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = Terminal()
    watch(shown, tmp_path, (node("False"), pod()))
    lines = shown.getvalue().partition("\x1b[J")[2].splitlines()
    assert lines[:6] == [
        "NAME    STATUS    AGE",
        "node-1  NotReady  5s",
        "",
        "NAMESPACE  NAME  STATUS   AGE",
        "default    web   Pending  -",
        "",
    ]
    assert lines[6].endswith("node node-1: not ready: no network")


def test_it_ends_when_the_api_server_has_ended(tmp_path: Path) -> None:
    def check(what: str) -> None:
        raise HarnessError(f"{what}: etcd ended")

    with pytest.raises(HarnessError, match="the cluster: etcd ended"):
        watch(io.StringIO(), tmp_path, (node("True"), pod()), check=check)


def test_what_it_shows_is_in_use(tmp_path: Path) -> None:
    os.utime(tmp_path, (0, 0))
    watch(io.StringIO(), tmp_path, (node("True"), pod()))
    assert tmp_path.stat().st_mtime > 0
