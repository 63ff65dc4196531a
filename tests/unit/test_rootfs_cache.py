"""The cache: keys follow content, entries are whole or absent, a second build waits; progress lines stay readable."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING

import pytest

from qemu.cluster import Cluster
from qemu.machine import disks_folder
from rootfs import __main__ as command
from rootfs.cache import Cache, directory, key, remove, run
from rootfs.progress import BuildError, Progress, duration

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def cache(tmp_path: Path, output: io.StringIO) -> Cache:
    return Cache(Progress(output), tmp_path / "cache")


def tree(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "a").write_text("1")
    (path / "sub/b").write_text("2")
    return path


def test_equal_trees_have_one_key_wherever_they_are(tmp_path: Path) -> None:
    assert key(tree(tmp_path / "x")) == key(tree(tmp_path / "y"))


@pytest.mark.parametrize("change", ["content", "name", "mode", "new", "gone", "link"])
def test_every_change_changes_the_key(tmp_path: Path, change: str) -> None:
    path = tree(tmp_path / "x")
    before = key(path)
    match change:
        case "content":
            (path / "a").write_text("3")
        case "name":
            (path / "a").rename(path / "c")
        case "mode":
            (path / "a").chmod(0o755)
        case "new":
            (path / "sub/c").write_text("")
        case "gone":
            (path / "a").unlink()
        case "link":
            (path / "c").symlink_to("a")
    assert key(path) != before


def test_what_this_machine_leaves_does_not_change_the_key(tmp_path: Path) -> None:
    path = tree(tmp_path / "x")
    before = key(path)
    (path / "__pycache__").mkdir()
    (path / "__pycache__/a.pyc").write_text("")
    (path / ".a.swp").write_text("")
    (path / "_native.cpython-311.so").symlink_to("/this/machine")
    assert key(path) == before


def test_text_inputs_do_not_run_together() -> None:
    assert key("ab", "c") != key("a", "bc")


def test_an_entry_is_built_once(cache: Cache) -> None:
    calls = []

    def build(path: Path) -> None:
        calls.append(path)
        path.write_text("made")

    first, second = (cache.entry("kind", "key", "what", 1, build) for _ in range(2))
    assert first == second == cache.root / "kind/key"
    assert first.read_text() == "made"
    assert len(calls) == 1


@pytest.mark.parametrize("interruption", [BuildError("no", "hint"), KeyboardInterrupt(), OSError("disk full")])
def test_an_interrupted_build_leaves_nothing(cache: Cache, interruption: BaseException) -> None:
    def build(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("half")
        raise interruption

    with pytest.raises(type(interruption)):
        cache.entry("kind", "key", "what", 1, build)
    assert list((cache.root / "kind").iterdir()) == []


def test_what_a_killed_build_left_is_not_used(cache: Cache) -> None:
    (cache.root / "kind/.key.partial").mkdir(parents=True)
    (cache.root / "kind/.key.partial/half").write_text("half")

    def build(path: Path) -> None:
        path.mkdir()
        (path / "whole").write_text("whole")

    made = cache.entry("kind", "key", "what", 1, build)
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_a_second_build_waits_for_the_first_and_says_so(cache: Cache, output: io.StringIO) -> None:
    building, waiting = threading.Event(), threading.Event()
    calls = []

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if "waiting" in text:
                waiting.set()
            return output.write(text)

    def build(path: Path) -> None:
        calls.append(path)
        building.set()
        assert waiting.wait(10)
        path.write_text("made")

    second = Cache(Progress(Watched()), cache.root)
    thread = threading.Thread(target=cache.entry, args=("kind", "key", "what", 1, build))
    thread.start()
    assert building.wait(10)
    assert second.entry("kind", "key", "what", 1, build).read_text() == "made"
    thread.join()
    assert len(calls) == 1
    assert "another build makes kind/key; waiting for it" in output.getvalue()


def test_trim_keeps_the_last_used_and_whatever_is_recent(cache: Cache) -> None:
    folder = cache.root / "kind"
    folder.mkdir(parents=True)
    for age, name in enumerate(["new", "older", "oldest", ".killed.partial"]):
        (folder / name).write_text("")
        os.utime(folder / name, (1_000_000 - age, 1_000_000 - age))
    (folder / "open").write_text("")
    cache.trim("kind", 2)
    assert sorted(path.name for path in folder.iterdir()) == ["new", "open"]
    (folder / "another").write_text("")
    (folder / "third").write_text("")
    cache.trim("kind", 1)
    assert sorted(path.name for path in folder.iterdir()) == ["another", "open", "third"]


def test_remove_takes_read_only_trees(tmp_path: Path) -> None:
    path = tree(tmp_path / "x")
    (path / "sub").chmod(0o500)
    path.chmod(0o500)
    remove(path)
    assert not path.exists()


def test_missing_space_is_named(cache: Cache) -> None:
    cache.root.mkdir()
    with pytest.raises(BuildError, match=r"the first build needs 1000000\.0 GB below .*, [0-9.]+ GB are free"):
        cache.require_space(10**15, "the first build")


def test_a_missing_program_is_named() -> None:
    with pytest.raises(BuildError, match="initd-no-such-program is missing"):
        run(["initd-no-such-program"], hint="")


def test_a_step_is_one_line(output: io.StringIO) -> None:
    with Progress(output).step("kubelet", "the node agent", 225):
        pass
    assert output.getvalue() == "kubelet: the node agent (about 3 min 45 s) ... 0.0 s\n"


def test_lines_inside_a_step_do_not_run_into_it(output: io.StringIO) -> None:
    progress = Progress(output)

    def outer() -> None:
        with progress.step("outer", "a", 1):
            with progress.step("inner", "b", 1):
                progress.warn("careful")
            raise BuildError("it broke", "mend it")

    with pytest.raises(BuildError):
        outer()
    assert output.getvalue().splitlines() == [
        "outer: a (about 1.0 s) ... ",
        "inner: b (about 1.0 s) ... ",
        "warning: careful",
        "inner: 0.0 s",
        "outer: failed",
    ]


def test_an_error_is_one_line_with_what_to_do(output: io.StringIO) -> None:
    Progress(output).error(BuildError("gcc is missing", "install it"))
    assert output.getvalue() == "error: gcc is missing; install it\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (60, "1 min 0 s")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_cache_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("sys.argv", ["rootfs", "image"])
    assert command.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the cache {tmp_path}/file/initd cannot be used: " in line
    assert "set XDG_CACHE_HOME" in line


def test_the_harness_folders_are_there_before_root_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory()
    assert disks_folder("a").parent.is_dir()
    assert Cluster("a").folder.parent.is_dir()


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_built(cache: Cache) -> None:
    cache.root.mkdir()
    (cache.root / "locks").touch()  # as good as read-only, and for root too
    with pytest.raises(BuildError, match="cannot be used") as caught:
        cache.entry("kind", "key", "what", 1, lambda _: pytest.fail("built"))
    assert str(cache.root) in caught.value.message
