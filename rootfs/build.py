"""The recipe: each step is cached by what it is made from, so a build with nothing to do only hashes its inputs."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import initd
from initd.config import containerd
from qemu.registry import REGISTRY
from rootfs import closed, debian, golang, initramfs, python, tree
from rootfs import cluster as cluster_images
from rootfs import conformance as conformance_images
from rootfs import image as disk_image
from rootfs.cache import Cache, key
from rootfs.tools import MOUNT_POINTS, Tools

if TYPE_CHECKING:
    from rootfs.progress import Progress

HERE = Path(__file__).parent
CLONE = HERE.parent
# Bytes that the first of a kind takes at most with what it is made from, most of them Go's module and object caches.
COLD_BUILD = {"base": 9_000_000_000, "cluster": 5_000_000_000, "conformance": 5_000_000_000}
# Entries that stay of the large and often changed kinds; what a clone's .venv points at is none of them.
KEEP = {"image": 4, "base": 2, "native": 4, "tools": 2, "go-*": 2, "cluster": 2, "conformance": 2}


@dataclass(frozen=True)
class Image:
    """A built image: what QEMU or a boot loader needs, and what it is made of."""

    kernel: Path
    initramfs: Path
    disk: Path
    manifest: Path


@dataclass(frozen=True)
class Cluster:
    """What a node joins in tests: the folder of the control plane's programs and kubectl, the folder of pod images."""

    programs: Path
    images: Path


@dataclass(frozen=True)
class Conformance:
    """Kubernetes' own tests: the program that runs them, and the folder of the images that they run in pods."""

    program: Path
    images: Path


@dataclass(frozen=True)
class _Parts:
    tools: Tools
    base: tree.Base
    native: Path


def _recipe(*names: str) -> list[Path]:
    return [HERE / name for name in names]


def _require_space(cache: Cache, *kinds: str) -> None:
    missing = [kind for kind in kinds if not (cache.root / kind).exists()]
    if missing:
        cache.require_space(sum(COLD_BUILD[kind] for kind in missing), f"the first build of {' and '.join(missing)}")


def _trim(cache: Cache) -> None:
    for pattern, count in KEEP.items():
        for folder in cache.root.glob(pattern):
            cache.trim(folder.name, count)


def _tools(cache: Cache, archive: debian.Archive) -> Tools:
    def make(target: Path) -> None:
        archive.unpack("tools", target)
        for name in MOUNT_POINTS:
            (target / name).mkdir(exist_ok=True)

    name = key(repr(archive.packages("tools")), *_recipe("tools.py", "unpack.py"))
    return Tools(cache.entry("tools", name, "Debian 13's compilers and image tools, 90 packages", 15, make))


def _base(cache: Cache, archive: debian.Archive, tools: Tools) -> tree.Base:
    site = python.image_site(cache)
    programs = {spec.name: golang.build(cache, tools, spec) for spec in golang.BUILDS}
    recipe = _recipe("tree.py", "pattern.py", "closed.py", "keep.txt", "skeleton")
    inputs = (
        repr(archive.packages("root")),
        tools.tree.name,
        site.name,
        *(path.parent.name for path in programs.values()),
    )
    name = key(*inputs, *(path.name for path in programs.values()), *recipe)

    def make(target: Path) -> None:
        tree.make_base(target, archive, site, programs, tools)
        closed.require(tree.Base(target).root, tools)

    return tree.Base(cache.entry("base", name, "the root tree without initd, pruned and compiled", 20, make))


def _native(cache: Cache, tools: Tools) -> Path:
    site = python.image_site(cache)
    source = CLONE / "native"

    def make(target: Path) -> None:
        target.mkdir()
        binds = {"native": source, "out": target, "site": site}
        env = {"PYTHONPATH": "/mnt/site", "PYTHONDONTWRITEBYTECODE": "1"}
        for arguments in (
            ("extension", "--output", "/mnt/out/extension"),
            ("entry", "--output", "/mnt/out/init"),
            ("program", "stage1", "--output", "/mnt/out/stage1"),
            ("program", "rescue", "--output", "/mnt/out/rescue"),
            ("images", "--output", "/mnt/out/images"),
        ):
            tools.run("python3.13", "/mnt/native/build.py", *arguments, binds=binds, env=env)

    return cache.entry(
        "native", key(source, tools.tree.name, site.name), "initd's C parts for the image's Python", 15, make
    )


def _parts(cache: Cache) -> _Parts:
    archive = debian.Archive(cache)
    _require_space(cache, "base")
    archive.fetch()  # first: if the mirror has moved on, other packages than the locked ones are what counts
    tools = _tools(cache, archive)
    return _Parts(tools, _base(cache, archive, tools), _native(cache, tools))


def _assemble(root: Path, parts: _Parts, version: str) -> None:
    """Make the whole tree at `root`: the base, initd, its native parts and what is rendered from it."""
    tree.link(parts.base.root, root)
    tree.add_initd(root, CLONE / "initd", parts.tools)
    tree.place(parts.native / "extension", root / tree.PACKAGES / "initd")
    share = root / "usr/share/initd"
    tree.place(parts.native / "images", share / "images")
    (share / "containerd.toml").write_text(containerd.render(), encoding="utf-8")
    (share / "version").write_text(f"{initd.__version__}+{version}\n", encoding="utf-8")
    for name, place in (("init", "usr/sbin/init"), ("rescue", "usr/lib/initd/rescue")):
        shutil.copyfile(parts.native / name, root / place)
        (root / place).chmod(0o755)
    closed.require(root, parts.tools)


def _make_image(target: Path, parts: _Parts, archive: debian.Archive, version: str) -> None:
    target.mkdir()
    root = target / "tree"
    _assemble(root, parts, version)
    shutil.copyfile(parts.base.kernel, target / "vmlinuz")
    initramfs.build(target / "initramfs.img", parts.native / "stage1", parts.base.modules)
    disk_image.make_disk(root, target / "disk.img", parts.tools)
    files = [target / name for name in ("vmlinuz", "initramfs.img", "disk.img")]
    versions = {
        "kubernetes": golang.KUBERNETES,
        "containerd": golang.CONTAINERD,
        "runc": golang.RUNC,
        "cni": golang.PLUGINS,
        "kernel": parts.base.modules.name,
    }
    packages = {package.name: package.version for package in archive.packages("root")} | python.image_versions()
    content = disk_image.manifest(root, files, packages, versions, moved_on=archive.moved_on)
    disk_image.write_manifest(target / "manifest.json", content)
    shutil.rmtree(root)


def programs(progress: Progress) -> Path:
    """The folder with containerd, its shim, runc and the kubelet as the image has them. Raises BuildError."""
    return _parts(Cache(progress)).base.root / "usr/bin"


def image(progress: Progress) -> Image:
    """Build what changed and return the image. Raises BuildError with what is missing and what to do."""
    cache = Cache(progress)
    archive = debian.Archive(cache)
    parts = _parts(cache)
    recipe = _recipe("build.py", "image.py", "tree.py", "closed.py", "initramfs.py", "modules.txt")
    moved = str(archive.moved_on)  # the manifest says it
    name = key(parts.base.path.name, parts.native.name, CLONE / "initd", moved, *recipe)

    def make(target: Path) -> None:
        _make_image(target, parts, archive, name[:12])

    path = cache.entry("image", name, "the disk image: tree, initd, compression", 20, make)
    _trim(cache)
    return Image(path / "vmlinuz", path / "initramfs.img", path / "disk.img", path / "manifest.json")


def cluster(progress: Progress) -> Cluster:
    """Build what changed of the cluster that nodes join: etcd, control plane, images. Raises BuildError."""
    cache = Cache(progress)
    _require_space(cache, "base", "cluster")
    archive = debian.Archive(cache)
    golang.source(cache, *golang.BENCHMARK)  # for the tests that run as root, which would make it root's
    parts = _parts(cache)
    builds = {spec.name: golang.build(cache, parts.tools, spec) for spec in golang.CLUSTER_BUILDS}
    inputs = (parts.base.path.name, parts.native.name, repr(archive.packages("cluster")), REGISTRY)
    sources = _recipe("build.py", "cluster.py", "closed.py")

    def make(target: Path) -> None:
        for name in ("programs", "images"):
            (target / name).mkdir(parents=True)
        for name in ("control-plane", "etcd"):
            for program in builds[name].iterdir():
                (target / "programs" / program.name).hardlink_to(program)
        for image in (parts.native / "images").iterdir():
            (target / "images" / image.name).hardlink_to(image)
        with tempfile.TemporaryDirectory(dir=cache.root) as scratch:
            packages = Path(scratch, "tree")
            archive.unpack("cluster", packages)
            pods = builds["cluster-pods"] / "pods"
            busybox = packages / "usr/bin/busybox"
            cluster_images.make_images(target / "images", pods, parts.base.root, busybox, parts.tools)

    name = key(*inputs, *(path.name for path in builds.values()), *sources, CLONE / "native/oci.py")
    path = cache.entry("cluster", name, "the cluster that nodes join: its programs and images", 10, make)
    _trim(cache)
    return Cluster(path / "programs", path / "images")


def conformance(progress: Progress) -> Conformance:
    """Build what changed of Kubernetes' own tests; the first time takes long. Raises BuildError."""
    cache = Cache(progress)
    _require_space(cache, "conformance")
    archive = debian.Archive(cache)
    archive.fetch()
    tools = _tools(cache, archive)
    programs, pods = (golang.build(cache, tools, spec) for spec in golang.CONFORMANCE_BUILDS)

    def make(target: Path) -> None:
        target.mkdir()
        source = golang.source(cache, "conformance", "k8s.io/kubernetes")
        with tempfile.TemporaryDirectory(dir=cache.root) as scratch:
            packages, binaries = Path(scratch, "tree"), Path(scratch, "programs")
            archive.unpack("cluster", packages)
            binaries.mkdir()
            for program in pods.iterdir():
                (binaries / program.name).hardlink_to(program)
            arguments = ("/mnt/native/build.py", "program", "pause", "--output", "/mnt/out/pause")
            tools.run("python3.13", *arguments, binds={"native": CLONE / "native", "out": binaries})
            conformance_images.make_images(target, source, binaries, packages / "usr/bin/busybox", tools)

    native = [CLONE / "native" / name for name in ("build.py", "oci.py", "pause.c")]
    recipe = _recipe("build.py", "conformance.py")
    name = key(pods.name, tools.tree.name, repr(archive.packages("cluster")), *recipe, *native)
    images = cache.entry("conformance", name, "the images that Kubernetes' own tests run", 10, make)
    _trim(cache)
    return Conformance(programs / "e2e.test", images)


def measure(progress: Progress, directory: Path) -> list[tuple[str, float, int]]:
    """Write the root with each of image.TRIALS as DIRECTORY/NAME.img; return names, seconds and bytes.

    `python -m qemu boot --kernel FILE --initrd FILE --disk DIRECTORY/NAME.img --output json` then times a boot of it.
    """
    cache = Cache(progress)
    parts = _parts(cache)
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    # The tree is made of hard links into the cache, so it has to be on the same file system.
    with tempfile.TemporaryDirectory(dir=cache.root) as scratch:
        root = Path(scratch, "tree")
        _assemble(root, parts, "measure")
        for name, (options, plain) in disk_image.TRIALS.items():
            disk = directory / f"{name}.img"
            begin = time.monotonic()
            disk_image.make_disk(root, disk, parts.tools, options, plain)
            found.append((name, time.monotonic() - begin, disk.stat().st_size))
    return found
