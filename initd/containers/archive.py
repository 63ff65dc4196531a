"""OCI image archives: tar files that hold an image layout (OCI image specification 1.1, image-layout.md)."""

from __future__ import annotations

import json
import re
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
JSON_LIMIT = 4 << 20  # a manifest or index larger than this is refused, as registries do
NESTING_LIMIT = 4
GC_LABEL = "containerd.io/gc.ref.content"


class ArchiveError(ValueError):
    """The archive is not one that can be imported; the text names the file, the place in it and what was expected."""


@dataclass(frozen=True)
class Descriptor:
    """A reference to a blob by digest ("sha256:" and 64 hex digits) and size in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True)
class Blob:
    """A blob to store, and the labels by which containerd's garbage collector finds the blobs that it refers to."""

    target: Descriptor
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Image:
    """One named image: `blobs` are all that it needs, each after the blobs it refers to; the last is `target`."""

    name: str
    target: Descriptor
    blobs: tuple[Blob, ...]


class Archive:
    """An open archive; make one with `opened`."""

    def __init__(self, path: str, tar: tarfile.TarFile) -> None:
        self._path = path
        self._tar = tar
        self._members = {member.name.removeprefix("./"): member for member in tar if member.isreg()}

    def images(self) -> list[Image]:
        """All images of the archive. Raises ArchiveError if there is none, or one has no name or lacks a blob."""
        entries = _list(self._json("index.json"), "manifests", f"{self._path}: index.json")
        if not entries:
            raise ArchiveError(f"{self._path}: index.json: no manifests, expected at least one")
        return [self._image(entry, f"{self._path}: index.json: manifests[{n}]") for n, entry in enumerate(entries)]

    def blob(self, digest: str) -> IO[bytes]:
        """The content of a blob. Raises ArchiveError if it is not there."""
        return self._open(_blob_name(digest))

    def _image(self, entry: Any, where: str) -> Image:
        target = _descriptor(entry, where)
        annotations = entry.get("annotations") or {}
        name = next((annotations[key] for key in NAME_ANNOTATIONS if annotations.get(key)), None)
        if not isinstance(name, str):
            raise ArchiveError(f"{where}: no name, expected an annotation {' or '.join(NAME_ANNOTATIONS)}")
        blobs: dict[str, Blob] = {}
        self._collect(target, blobs, NESTING_LIMIT)
        return Image(name, target, tuple(blobs.values()))

    def _collect(self, target: Descriptor, blobs: dict[str, Blob], depth: int) -> None:
        """Add `target` to `blobs`, after all that it refers to."""
        if target.digest in blobs:
            return
        if depth == 0:
            raise ArchiveError(f"{self._path}: {target.digest}: nested deeper than {NESTING_LIMIT} levels")
        self._check_size(target)
        children = self._children(target)
        for child in children.values():
            self._collect(child, blobs, depth - 1)
        blobs[target.digest] = Blob(target, {f"{GC_LABEL}.{role}": child.digest for role, child in children.items()})

    def _children(self, target: Descriptor) -> dict[str, Descriptor]:
        """What a manifest or index refers to, by the role that containerd's own labels name it with."""
        where = f"{self._path}: {target.digest}"
        if target.media_type in INDEX_TYPES:
            entries = _list(self._json(_blob_name(target.digest)), "manifests", where)
            found = {f"m.{n}": _descriptor(entry, f"{where}: manifests[{n}]") for n, entry in enumerate(entries)}
            # An archive may hold one platform of an image for many; containerd looks for the others only to run them.
            return {role: child for role, child in found.items() if _blob_name(child.digest) in self._members}
        if target.media_type in MANIFEST_TYPES:
            manifest = self._json(_blob_name(target.digest))
            layers = _list(manifest, "layers", where)
            return {
                "config": _descriptor(manifest.get("config"), f"{where}: config"),
                **{f"l.{n}": _descriptor(layer, f"{where}: layers[{n}]") for n, layer in enumerate(layers)},
            }
        return {}

    def _check_size(self, target: Descriptor) -> None:
        with self.blob(target.digest) as blob:
            size = blob.seek(0, 2)
        if size != target.size:
            raise ArchiveError(f"{self._path}: {target.digest}: {size} bytes, expected {target.size}")

    def _open(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        stream = self._tar.extractfile(member) if member else None
        if stream is None:
            raise ArchiveError(f"{self._path}: {name}: not in the archive")
        return stream

    def _json(self, name: str) -> dict[str, Any]:
        with self._open(name) as stream:
            text = stream.read(JSON_LIMIT + 1)
        if len(text) > JSON_LIMIT:
            raise ArchiveError(f"{self._path}: {name}: larger than {JSON_LIMIT} bytes")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArchiveError(f"{self._path}: {name}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ArchiveError(f"{self._path}: {name}: {type(value).__name__}, expected an object")
        return value


@contextmanager
def opened(path: str) -> Iterator[Archive]:
    """Open the archive at `path` (an uncompressed tar file). Raises OSError, or ArchiveError if it is no archive."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield Archive(path, tar)
    except tarfile.TarError as error:
        raise ArchiveError(f"{path}: not an uncompressed tar file: {error}") from error


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _list(value: dict[str, Any], key: str, where: str) -> list[Any]:
    found = value.get(key)
    if not isinstance(found, list):
        raise ArchiveError(f"{where}: {key}: {type(found).__name__}, expected a list")
    return found


def _descriptor(value: Any, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise ArchiveError(f"{where}: {type(value).__name__}, expected a descriptor")
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str):
        raise ArchiveError(f"{where}: mediaType: {media_type!r}, expected a text")
    if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ArchiveError(f"{where}: digest: {digest!r}, expected sha256: and 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ArchiveError(f"{where}: size: {size!r}, expected a number of bytes")
    return Descriptor(media_type, digest, size)
