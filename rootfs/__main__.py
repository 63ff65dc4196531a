"""`python -m rootfs image|cluster|conformance|export DIR|lock|measure DIR`: see --help."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from rootfs import build, lock
from rootfs.cache import Cache
from rootfs.image import digest
from rootfs.progress import BuildError, Progress


def _export(image: build.Image, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for path in (image.kernel, image.initramfs, image.disk, image.manifest):
        shutil.copyfile(path, directory / path.name)
        lines.append(f"{digest(path)}  {path.name}\n")
    (directory / "SHA256SUMS").write_text("".join(lines))


def main() -> int:
    """Run one command; 1 with a line that says what to do when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m rootfs", description="Builds the image that initd runs in.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("image", help="build what changed; print where the files are, as JSON")
    commands.add_parser("cluster", help="build the cluster that nodes join in tests; print where it is, as JSON")
    commands.add_parser("conformance", help="build Kubernetes' own tests of a node; print where they are, as JSON")
    commands.add_parser("lock", help="renew the locks of Debian and Python packages")
    commands.add_parser("export", help="build, and copy the files with checksums").add_argument("directory", type=Path)
    measure = commands.add_parser("measure", help="write the root disk with each compression; print seconds and MB")
    measure.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    progress = Progress()
    try:
        match arguments.command:
            case "image" | "cluster" | "conformance":
                built = getattr(build, arguments.command)(progress)
                print(json.dumps({name: str(path) for name, path in asdict(built).items()}))
            case "lock":
                lock.renew(Cache(progress))
            case "export":
                _export(build.image(progress), arguments.directory)
            case "measure":
                for name, seconds, size in build.measure(progress, arguments.directory.resolve()):
                    print(f"{name:16} {seconds:6.1f} s {size / 1e6:8.1f} MB")
    except BuildError as error:
        progress.error(error)
        return 1
    except KeyboardInterrupt:
        progress.note("stopped; what was finished is kept")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
