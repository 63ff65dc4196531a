"""The root tree: packages pruned to the keep list, and completed with what maintainer scripts would have made.

The large part, `base`, changes only with the locks and the recipe. What changes with each edit of initd is added to
hard links of it.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs import debian
from rootfs.pattern import KeepList
from rootfs.progress import BuildError

if TYPE_CHECKING:
    from rootfs.tools import Tools

HERE = Path(__file__).parent
PACKAGES = "usr/lib/initd/python"
STDLIB = "usr/lib/python3.13"
# Empty directories that something is mounted on, or that must be there for a path to resolve.
MOUNT_POINTS = (
    *("dev", "etc/cni", "etc/kubernetes", "mnt", "opt/cni/bin", "proc", "root", "run", "sys", "tmp", "var"),
    "usr/share/initd/images",
)
RUN_ETC = ("hostname", "hosts", "machine-id", "resolv.conf")
PROGRAM_DIRECTORIES = {"cni": "usr/lib/cni"}


@dataclass(frozen=True)
class Base:
    """What `make_base` leaves in its directory."""

    path: Path

    @property
    def root(self) -> Path:
        """The tree itself."""
        return self.path / "root"

    @property
    def kernel(self) -> Path:
        """The kernel image."""
        return self.path / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The tree's /lib/modules/VERSION."""
        (path,) = (self.root / "usr/lib/modules").iterdir()
        return path


def make_base(target: Path, archive: debian.Archive, site: Path, programs: dict[str, Path], tools: Tools) -> None:
    """Make `target`/root, of the root packages, the Python packages in `site` and the `programs` (by build name)."""
    unpacked = target / "unpacked"
    archive.unpack("root", unpacked)
    place(site, unpacked / PACKAGES)
    base = Base(target)
    prune(unpacked, base.root, KeepList(debian.read_list(HERE / "keep.txt")))
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    kernel.rename(base.kernel)
    _certificates(unpacked, base.root)
    shutil.rmtree(unpacked)
    for name, folder in programs.items():
        place(folder, base.root / PROGRAM_DIRECTORIES.get(name, "usr/bin"))
    _complete(base.root)
    _unpack_modules(base.modules)
    tools.run("depmod", "-b", "/mnt/root", base.modules.name, binds={"root": base.root})
    compile_python(tools, base.root, STDLIB, sources=False, optimise=2)
    compile_python(tools, base.root, PACKAGES, sources=False, optimise=1)
    tools.run("ldconfig", "-X", "-r", "/mnt/root", binds={"root": base.root})
    (base.root / "var").chmod(0o755)
    remove_children(base.root / "var")


def remove_children(folder: Path) -> None:
    """Empty `folder`."""
    for child in folder.iterdir():
        shutil.rmtree(child)


def place(source: Path, target: Path) -> None:
    """Copy a tree into `target` with the modes that every file of the image has: 755 or 644, never setuid."""
    for parent, folders, files in os.walk(source):
        folders.sort()
        here = target / Path(parent).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for name in [*files, *(folder for folder in folders if Path(parent, folder).is_symlink())]:
            _place_file(Path(parent, name), here / name)


def _place_file(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)


def prune(source: Path, target: Path, keep: KeepList) -> None:
    """Copy what `keep` keeps of `source` to `target`. Raises BuildError when a line of the list keeps nothing."""
    for parent, folders, files in os.walk(source):
        folders.sort()
        for name in [*files, *(folder for folder in folders if Path(parent, folder).is_symlink())]:
            path = Path(parent, name)
            relative = path.relative_to(source).as_posix()
            if keep.keeps(relative):
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                _place_file(path, target / relative)
    if unused := keep.unused():
        raise BuildError(f"keep.txt: nothing matches {', '.join(unused)}", "mend the list or rootfs/packages/root.txt")


def _certificates(unpacked: Path, root: Path) -> None:
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True)
    certificates = sorted((unpacked / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    bundle.write_text("".join(path.read_text() for path in certificates))


def _complete(root: Path) -> None:
    """What maintainer scripts would have made."""
    place(HERE / "skeleton", root)
    for folder in MOUNT_POINTS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in RUN_ETC:
        (root / "etc" / name).symlink_to(f"/run/initd/etc/{name}")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    (root / "etc/mtab").symlink_to("/proc/self/mounts")


def _unpack_modules(modules: Path) -> None:
    """erofs compresses the modules better than xz did each alone, and the kernel then need not."""
    for compressed in modules.rglob("*.ko.xz"):
        module = compressed.with_suffix("")
        module.write_bytes(lzma.decompress(compressed.read_bytes()))
        module.chmod(0o644)
        compressed.unlink()


def compile_python(tools: Tools, root: Path, folder: str, *, sources: bool, optimise: int = 0) -> None:
    """Compile `folder` of `root`, so that a read-only root need not at each boot.

    Without `sources` the .pyc takes the place of its .py. The hash that is in it is never checked. One process compiles
    all in a fixed order with a fixed hash seed: what an object's bytes are depends on what was compiled before it.
    """
    beside = [] if sources else ["-b"]
    options = ("-q", "-f", "-s", "/mnt/root", "-p", "/", "--invalidation-mode", "unchecked-hash")
    compiler = ("python3.13", "-B", "-m", "compileall", *options, *beside, "-o", str(optimise))
    tools.run(*compiler, f"/mnt/root/{folder}", binds={"root": root}, env={"PYTHONHASHSEED": "0"})
    if not sources:
        for source in (root / folder).rglob("*.py"):
            source.unlink()


def link(source: Path, target: Path) -> None:
    """Copy a tree by hard links."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


def add_initd(root: Path, package: Path, tools: Tools) -> None:
    """Put the Python package initd into `root`, with its sources: a traceback that shows the line is worth 100 kB."""
    target = root / PACKAGES / "initd"
    target.mkdir()
    for path in sorted(path for path in package.rglob("*") if path.suffix in {".py", ".toml", ".txt"}):
        (target / path.relative_to(package)).parent.mkdir(parents=True, exist_ok=True)
        _place_file(path, target / path.relative_to(package))
    compile_python(tools, root, f"{PACKAGES}/initd", sources=True)
