"""Writes an OCI image archive (image-spec: image-layout, manifest, config) of a few files in one layer.

Equal inputs give equal bytes. The layer is a plain tar: the archive lies in a compressed root file system, and an
emulated node would spend its boot on unpacking gzip.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

CREATED = "1970-01-01T00:00:00Z"
MEDIA = "application/vnd.oci.image"


@dataclass(frozen=True)
class File:
    """A file of an image: its bytes, or the path of a file that holds them, and its mode."""

    content: bytes | Path
    mode: int = 0o644

    def data(self) -> bytes:
        """The bytes. Raises OSError if the file cannot be read."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


@dataclass(frozen=True)
class Link:
    """A symbolic link of an image."""

    target: str


@dataclass(frozen=True)
class Directory:
    """A directory of an image, where its mode matters; those above files need no mention."""

    mode: int = 0o755


Entry: TypeAlias = File | Link | Directory


@dataclass(frozen=True)
class Image:
    """An image: name with tag (`initd.local/pause:1`), files by absolute path, what runs, and as which user."""

    name: str
    files: Mapping[str, Entry]
    entrypoint: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    architecture: str = "amd64"
    user: str = ""

    def __post_init__(self) -> None:
        """Refuse what containerd would only refuse on the node."""
        repository, separator, tag = self.name.rpartition(":")
        if not separator or not repository or not tag or "/" in tag:
            raise ValueError(f"image name: found {self.name!r}, expected REPOSITORY:TAG")
        for path in self.files:
            if not path.startswith("/") or ".." in PurePosixPath(path).parts:
                raise ValueError(f"image {self.name}: found file {path!r}, expected an absolute path without '..'")


def _add(archive: tarfile.TarFile, path: str, entry: Entry) -> None:
    """Add an entry, owned by root and without a time."""
    member = tarfile.TarInfo(path)
    data = b""
    match entry:
        case File(_, mode):
            data = entry.data()
            member.mode, member.size = mode, len(data)
        case Link(target):
            member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, target
        case Directory(mode):
            member.type, member.mode = tarfile.DIRTYPE, mode
    archive.addfile(member, io.BytesIO(data))


def _tar(entries: Mapping[str, Entry]) -> bytes:
    """A tar of the files and of the directories above them, sorted."""
    parents = {str(parent) for path in entries for parent in PurePosixPath(path).parents} - {".", "/"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted({*entries, *parents}):
            _add(archive, path.lstrip("/"), entries.get(path, Directory()))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(media: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media, "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


def archive(image: Image) -> bytes:
    """The archive: a tar of oci-layout, index.json and blobs, named in the annotations that containerd reads."""
    layer = _tar(image.files)
    process = {"Entrypoint": image.entrypoint, "Cmd": image.args, "WorkingDir": "/", "User": image.user}
    process["Env"] = tuple(f"{name}={value}" for name, value in sorted(image.env.items()))
    config = _json({
        "architecture": image.architecture, "os": "linux", "created": CREATED, "config": process,
        "rootfs": {"type": "layers", "diff_ids": [_descriptor("", layer)["digest"]]},
    })  # fmt: skip
    manifest = _json({
        "schemaVersion": 2, "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _descriptor(f"{MEDIA}.config.v1+json", config),
        "layers": [_descriptor(f"{MEDIA}.layer.v1.tar", layer)],
    })  # fmt: skip
    names = {"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name.rpartition(":")[2]}
    listed = {**_descriptor(f"{MEDIA}.manifest.v1+json", manifest), "annotations": names}
    index = _json({"schemaVersion": 2, "mediaType": f"{MEDIA}.index.v1+json", "manifests": [listed]})
    blobs = {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": File(blob) for blob in (layer, config, manifest)}
    return _tar({"oci-layout": File(_json({"imageLayoutVersion": "1.0.0"})), "index.json": File(index), **blobs})


def write(path: Path, image: Image) -> None:
    """Write the archive whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(archive(image))
        scratch.chmod(0o644)
        scratch.rename(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
