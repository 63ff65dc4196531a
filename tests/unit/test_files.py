"""The files that the API tells of: types and owners, never contents; nothing leads it astray."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from initd.api.methods.workers import files
from initd.api.protocol import ApiError, Code
from initd.devices import files as worker

if TYPE_CHECKING:
    from pathlib import Path


class Devices:
    """The devices worker, as PID 1 calls it."""

    async def call(self, method: str, base: str, path: str) -> object:
        assert method == "files"
        return await asyncio.to_thread(worker.files, base, path)


def listed(path: str) -> dict[str, Any]:
    node = SimpleNamespace(workers={"devices": Devices()})

    async def collect() -> dict[str, Any]:
        return {entry["name"]: entry async for entry in files(cast("Any", SimpleNamespace(node=node)), path)}

    return asyncio.run(collect())


def test_a_directory_is_listed_with_modes_owners_and_types(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "current").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = listed(str(tmp_path))
    assert {name: entry["type"] for name, entry in found.items()} == {
        "secret": "file", "folder": "directory", "current": "link", "pipe": "fifo",
    }  # fmt: skip
    secret = found["secret"]
    assert (secret["mode"], secret["uid"], secret["gid"], secret["size_bytes"]) == ("0600", os.getuid(), os.getgid(), 5)


def test_a_single_file_is_one_entry_and_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert list(listed(str(tmp_path / "pipe"))) == ["pipe"]


@pytest.mark.parametrize(
    ("path", "code"),
    [("etc", Code.INVALID_ARGUMENT), ("/etc\0x", Code.INVALID_ARGUMENT), ("/no/such/file", Code.NOT_FOUND)],
)
def test_a_bad_path_is_named(path: str, code: Code) -> None:
    with pytest.raises(ApiError, match="files: ") as caught:
        listed(path)
    assert caught.value.code is code


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ApiError, match="cannot be looked at") as caught:
        listed(str(tmp_path / "link" / "x"))
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_what_is_mounted_by_others_is_not_entered() -> None:
    """Every mount that initd did not make is another file system: proc below / stands for one."""
    names = listed("/")
    assert "etc" in names
    assert "proc" not in names


def test_more_than_an_answer_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MOST", 3)
    for number in range(3):
        (tmp_path / str(number)).touch()
    assert len(listed(str(tmp_path))) == 3
    (tmp_path / "one more").touch()
    with pytest.raises(ApiError, match="more than 3 files") as caught:
        listed(str(tmp_path))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
