"""OCI archives, read back by the image specification's rules."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from native import oci
else:
    SPEC = importlib.util.spec_from_file_location("oci", Path(__file__).parents[2] / "native" / "oci.py")
    oci = importlib.util.module_from_spec(SPEC)
    sys.modules["oci"] = oci  # dataclasses look their module up there
    SPEC.loader.exec_module(oci)

IMAGE = oci.Image(
    "initd.local/web:1",
    {
        "/web": oci.File(b"\x7fELF", 0o755),
        "/www/sub/index": oci.File(b"hello"),
        "/bin/web": oci.Link("/web"),
        "/tmp": oci.Directory(0o1777),
    },
    ("/web",),
    ("serve", "80"),
    {"B": "2", "A": "1"},
    user="1234",
)


class Archive:
    """Follows index, manifest, config and layer by their digests, checking each."""

    def __init__(self, data: bytes) -> None:
        self.tar = tarfile.open(fileobj=io.BytesIO(data))  # noqa: SIM115 - in memory
        assert self.json("oci-layout") == {"imageLayoutVersion": "1.0.0"}
        (listed,) = self.json("index.json")["manifests"]
        self.annotations = listed["annotations"]
        manifest = json.loads(self.blob(listed))
        self.config = json.loads(self.blob(manifest["config"]))
        (layer,) = manifest["layers"]
        content = self.blob(layer)
        assert self.config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(content).hexdigest()}"]
        self.layer = tarfile.open(fileobj=io.BytesIO(content))  # noqa: SIM115 - in memory

    def read(self, name: str) -> bytes:
        return cast("Any", self.tar.extractfile(name)).read()  # type: ignore[no-any-return]

    def json(self, name: str) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.read(name)))

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        algorithm, _, digest = descriptor["digest"].partition(":")
        data = self.read(f"blobs/{algorithm}/{digest}")
        assert hashlib.new(algorithm, data).hexdigest() == digest
        assert len(data) == descriptor["size"]
        return data


def test_the_archive_says_what_runs_and_under_which_name() -> None:
    archive = Archive(oci.archive(IMAGE))
    assert archive.annotations == {
        "io.containerd.image.name": "initd.local/web:1",
        "org.opencontainers.image.ref.name": "1",
    }
    config = archive.config["config"]
    assert (config["Entrypoint"], config["Cmd"], config["Env"]) == (["/web"], ["serve", "80"], ["A=1", "B=2"])
    assert config["User"] == "1234"
    assert (archive.config["os"], archive.config["architecture"]) == ("linux", "amd64")


def test_the_layer_holds_files_with_modes_and_their_directories() -> None:
    layer = Archive(oci.archive(IMAGE)).layer
    entries = {entry.name: entry for entry in layer.getmembers()}
    expected = ["bin", "bin/web", "tmp", "web", "www", "www/sub", "www/sub/index"]
    assert list(entries) == expected, "a directory comes before what is in it"
    assert entries["web"].mode == 0o755
    assert (entries["bin/web"].issym(), entries["bin/web"].linkname) == (True, "/web")
    assert (entries["tmp"].isdir(), entries["tmp"].mode) == (True, 0o1777)
    assert entries["www"].isdir()
    assert cast("Any", layer.extractfile("www/sub/index")).read() == b"hello"
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, 0)}


@given(st.dictionaries(st.from_regex(r"(/[a-z]{1,8}\.){1,3}", fullmatch=True), st.binary(max_size=2000), max_size=5))
def test_any_files_come_back_and_order_does_not_matter(contents: dict[str, bytes]) -> None:
    files = {path: oci.File(data) for path, data in contents.items()}
    parents = {str(parent) for path in files for parent in Path(path).parents}
    files = {path: file for path, file in files.items() if path not in parents}
    data = oci.archive(oci.Image("a/b:c", files, ("/x",)))
    assert data == oci.archive(oci.Image("a/b:c", dict(reversed(files.items())), ("/x",)))
    layer = Archive(data).layer
    found = {f"/{entry.name}": layer.extractfile(entry) for entry in layer.getmembers() if entry.isfile()}
    assert {path: cast("Any", file).read() for path, file in found.items()} == {path: contents[path] for path in files}


@pytest.mark.parametrize("name", ["", "pause", ":1", "pause:", "host:5000/pause"])
def test_a_name_without_a_tag_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected REPOSITORY:TAG"):
        oci.Image(name, {}, ("/x",))


@pytest.mark.parametrize("path", ["relative", "/../etc/passwd", ""])
def test_a_path_out_of_the_image_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"expected an absolute path"):
        oci.Image("a:1", {path: oci.File(b"")}, ("/x",))


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"program")
    target = tmp_path / "images" / "pause.tar"
    image = oci.Image("a:1", {"/pause": oci.File(source, 0o755)}, ("/pause",))
    oci.write(target, image)
    assert target.read_bytes() == oci.archive(image)
    assert target.stat().st_mode & 0o777 == 0o644
    source.unlink()
    with pytest.raises(FileNotFoundError):
        oci.write(tmp_path / "images" / "other.tar", image)
    assert [path.name for path in target.parent.iterdir()] == ["pause.tar"]
