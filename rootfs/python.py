"""Python packages by locked, hashed wheels: for the image's Python and for the host's."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs.cache import key, run

if TYPE_CHECKING:
    from rootfs.cache import Cache

HERE = Path(__file__).parent
IMAGE_PYTHON = "3.13"
SYSTEM = "/usr/bin/python3"  # the one whose pip and headers Debian packages
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")
HINT = "check the network and pip's configuration"


def _foreign(version: str) -> list[str]:
    """pip's options to choose wheels for CPython `version` on x86-64 whatever Python pip itself runs on."""
    options = ["--python-version", version, "--implementation", "cp", "--only-binary=:all:"]
    return options + [text for platform in PLATFORMS for text in ("--platform", platform)]


def _pip(*arguments: str) -> str:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    return run([SYSTEM, "-m", "pip", *arguments, *quiet], hint=HINT)


def image_site(cache: Cache) -> Path:
    """The directory with the image's third-party packages, cffi's compiler half included."""
    lock = HERE / "locks/python.txt"

    def install(target: Path) -> None:
        _pip(
            "install", "--require-hashes", "--no-deps", "--no-compile", *_foreign(IMAGE_PYTHON),
            "--target", str(target), "-r", str(lock),
        )  # fmt: skip

    return cache.entry("site-image", key(lock), "Python packages for the image, hash-checked wheels", 10, install)


def host_site(cache: Cache) -> Path:
    """The directory with what the host's Python needs: the image's packages, tests and linters."""
    lock = HERE / "locks/host-python.txt"

    def install(target: Path) -> None:
        _pip("install", "--require-hashes", "--no-deps", *_foreign(version), "--target", str(target), "-r", str(lock))

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache.entry(
        "site-host", key(lock, version), "Python packages for tests and linters, hash-checked wheels", 20, install
    )


def image_versions() -> dict[str, str]:
    """The image's third-party packages, as `python:NAME`, and their versions."""
    pairs = (line.split()[0].split("==") for line in (HERE / "locks/python.txt").read_text().splitlines()[1:])
    return {f"python:{name}": version for name, version in pairs}


def resolve(requirements: Path, versions: tuple[str, ...]) -> str:
    """The text of a lock for `requirements`: exact versions, and the wheel's hash for each Python in `versions`."""
    hashes: dict[str, set[str]] = {}
    for version in versions:
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch, "report.json")
            _pip(
                "install", "--dry-run", "--ignore-installed", "--report", str(report), "--target", scratch,
                *_foreign(version), "-r", str(requirements),
            )  # fmt: skip
            for entry in json.loads(report.read_text())["install"]:
                name = f"{entry['metadata']['name'].lower()}=={entry['metadata']['version']}"
                hashes.setdefault(name, set()).add(entry["download_info"]["archive_info"]["hash"].replace("=", ":"))
    lines = [
        " ".join([name, *(f"--hash={digest}" for digest in sorted(found))]) for name, found in sorted(hashes.items())
    ]
    return "\n".join(["# Made by `make lock`.", *lines, ""])
