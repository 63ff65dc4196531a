"""Debian 13 packages: resolved, verified and fetched by apt, once.

apt runs in a private directory against the mirror, proxy and keyring of the host's own configuration, so nothing here
names a mirror.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import urllib.parse
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs.cache import key, run
from rootfs.progress import BuildError
from rootfs.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rootfs.cache import Cache

HERE = Path(__file__).parent
RELEASE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TREES = ("tools", "root", "cluster")
NETWORK_HINT = "check the network and that `apt-get update` works on this machine"


@dataclass(frozen=True)
class Package:
    """One line of a lock: exactly one .deb."""

    name: str
    version: str
    sha256: str
    filename: str

    @property
    def architecture(self) -> str:
        """`amd64` or `all`."""
        return self.filename.removesuffix(".deb").rpartition("_")[2]

    @property
    def file(self) -> str:
        """The name of the .deb as `apt-get download` writes it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def read_list(path: Path) -> list[str]:
    """The lines of `path` that are neither empty nor comments."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def read_lock(tree: str) -> list[Package]:
    """The locked packages of `tree`, one of TREES."""
    return [Package(*line.split()) for line in read_list(HERE / f"locks/{tree}.txt")]


def write_lock(tree: str, packages: list[Package]) -> None:
    """Replace the lock of `tree`."""
    lines = [
        "# Made by `make lock`: package, version, SHA-256, place in the archive.",
        *(" ".join(astuple(p)) for p in packages),
    ]
    (HERE / f"locks/{tree}.txt").write_text("\n".join(lines) + "\n")


# The host's apt sources, for another release


def _deb822(text: str) -> Iterator[dict[str, str]]:
    """Paragraphs of a .sources file; a continued value keeps its lines (an inline key is one)."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in paragraph.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t":
                fields[last] += "\n" + line
            else:
                last, _, value = line.partition(":")
                fields[last] = value.strip()
        if fields:
            yield fields


def _one_line(text: str) -> Iterator[dict[str, str]]:
    """Entries of a sources.list file: deb [option=value ...] URI suite component..."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.+)", line.partition("#")[0].strip())
        if match:
            options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
            fields = {"Types": "deb", "URIs": match[2], "Suites": match[3], "Components": match[4]}
            yield fields | ({"Signed-By": options["signed-by"]} if "signed-by" in options else {})


def host_sources(etc_apt: Path, codename: str) -> str:
    """The host's Debian sources of `codename` in deb822 form, turned to RELEASE.

    Other archives are left out: an entry counts when its suites are the host's own release. Raises BuildError when
    there is none.
    """
    files = sorted([etc_apt / "sources.list", *(etc_apt / "sources.list.d").glob("*")])
    entries = [
        fields
        for file in files
        if file.is_file()
        for fields in (_deb822 if file.suffix == ".sources" else _one_line)(file.read_text())
    ]
    wanted = {codename, f"{codename}-updates", f"{codename}-security"}
    paragraphs = []
    for fields in entries:
        suites = [suite for suite in fields.get("Suites", "").split() if suite in wanted]
        if not suites or "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes") == "no":
            continue
        paragraphs.append(
            f"Types: deb\nURIs: {fields['URIs']}\nSuites: {' '.join(s.replace(codename, RELEASE, 1) for s in suites)}\n"
            f"Components: main\nSigned-By: {fields.get('Signed-By', KEYRING)}\n"
        )
    if not paragraphs:
        raise BuildError(f"{etc_apt} names no Debian mirror for {codename}", "add one to /etc/apt/sources.list.d")
    return "\n".join(dict.fromkeys(paragraphs))


def _codename() -> str:
    match = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return match[1] if match else RELEASE


class Apt:
    """apt for RELEASE in a directory of its own: the host's packages and lists are not touched."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.updated = False
        for name in ("state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "status").write_text("")
        (directory / "debian.sources").write_text(host_sources(Path("/etc/apt"), _codename()))
        host = run(["apt-config", "dump", "Acquire"], hint="initd is built on Debian 12 or 13")
        own = {
            "Dir::Etc::Main": "/dev/null",
            "Dir::Etc::Parts": "/dev/null",
            "Dir::Etc::SourceList": directory / "debian.sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": directory / "state",
            "Dir::State::status": directory / "status",
            "Dir::Cache": directory / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        proxy = [line for line in host.splitlines() if re.match(r"Acquire::(https?|ftp)::", line)]
        (directory / "apt.conf").write_text("\n".join([*proxy, *(f'{k} "{v}";' for k, v in own.items())]) + "\n")

    def _run(self, *argv: str, cwd: Path | None = None) -> str:
        env = {**os.environ, "APT_CONFIG": str(self.directory / "apt.conf"), "LC_ALL": "C.UTF-8"}
        return run(list(argv), hint=NETWORK_HINT, env=env, cwd=cwd)

    def update(self) -> None:
        """Fetch and verify the package lists, once per process."""
        if self.updated:
            return
        try:
            self._run("apt-get", "-qq", "--error-on=any", "update")
        except BuildError as error:
            if "NO_PUBKEY" in error.message:
                raise BuildError(
                    f"the host's archive keyring cannot verify Debian {RELEASE}",
                    "upgrade the package debian-archive-keyring",
                ) from error
            raise
        self.updated = True

    def resolve(self, names: Iterable[str]) -> list[Package]:
        """The newest packages that `names` and what they depend on stand for, sorted by name."""
        self.update()
        lines = self._run("apt-get", "-qq", "-y", "--print-uris", "install", *names).splitlines()
        files = [line.split()[1] for line in lines if line.startswith("'")]
        wanted = [
            f"{name}={urllib.parse.unquote(version)}" for name, version, *_ in (file.split("_") for file in files)
        ]
        return sorted(self.describe(wanted), key=lambda package: package.name)

    def describe(self, wanted: list[str]) -> list[Package]:
        """What the archive says of each name=version that it still has."""
        found = {}
        env = {**os.environ, "APT_CONFIG": str(self.directory / "apt.conf")}
        # apt-cache ends with an error when any version is unknown, and still describes the others.
        argv = ["apt-cache", "--no-all-versions", "show", *wanted]
        shown = subprocess.run(argv, check=False, capture_output=True, text=True, env=env).stdout
        for fields in _deb822(shown):
            if f"{fields['Package']}={fields['Version']}" in wanted:
                found[fields["Package"]] = Package(
                    fields["Package"], fields["Version"], fields["SHA256"], fields["Filename"]
                )
        return list(found.values())

    def download(self, packages: list[Package], target: Path) -> None:
        """Put the verified .debs into `target`."""
        self._run("apt-get", "-qq", "download", *(f"{p.name}={p.version}" for p in packages), cwd=target)


def _intact(deb: Path, package: Package) -> bool:
    return deb.exists() and hashlib.sha256(deb.read_bytes()).hexdigest() == package.sha256


class Archive:
    """The .debs of all trees, kept in the cache for when the mirror has dropped them."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.folder = cache.root / "debs"
        self.folder.mkdir(parents=True, exist_ok=True)
        locks = [HERE / f"locks/{tree}.txt" for tree in TREES]
        self.moved = cache.root / "debs-moved" / f"{key(*locks)}.json"

    def packages(self, tree: str) -> list[Package]:
        """What `tree` is made from: the lock, or what took its place when the mirror had moved on."""
        if self.moved.exists():
            return [Package(**entry) for entry in json.loads(self.moved.read_text())[tree]]
        return read_lock(tree)

    @property
    def moved_on(self) -> bool:
        """Whether the mirror no longer had what the locks say."""
        return self.moved.exists()

    def fetch(self) -> None:
        """Make the .debs of all trees present. Reads no network when they are."""
        if not self._missing():
            return
        with self.cache.locked("debs"):
            missing = self._missing()
            if not missing:
                return
            with self.cache.progress.step("debs", f"{len(missing)} Debian 13 packages from this host's mirror", 15):
                apt = Apt(self.cache.root / "apt")
                apt.update()
                if len(apt.describe([f"{p.name}={p.version}" for p in missing])) < len(missing):
                    self._move_on(apt)
                    missing = self._missing()
                if missing:
                    apt.download(missing, self.folder)
            for package in missing:
                if not _intact(self.folder / package.file, package):
                    raise BuildError(
                        f"{package.file} is not what the lock says", "run `make lock` and look at its diff"
                    )

    def _missing(self) -> list[Package]:
        everything = {package for tree in TREES for package in self.packages(tree)}
        return [p for p in sorted(everything, key=lambda p: p.name) if not (self.folder / p.file).exists()]

    def _move_on(self, apt: Apt) -> None:
        resolved = {tree: apt.resolve(read_list(HERE / f"packages/{tree}.txt")) for tree in TREES}
        self.moved.parent.mkdir(exist_ok=True)
        temporary = self.moved.with_suffix(".partial")
        temporary.write_text(json.dumps({tree: [vars(p) for p in packages] for tree, packages in resolved.items()}))
        temporary.rename(self.moved)
        self.cache.progress.warn("the mirror has moved on: taking what apt verifies now; `make lock` renews the lock")

    def unpack(self, tree: str, target: Path) -> None:
        """Unpack the .debs of `tree` into `target`, which is made. Raises BuildError."""
        packages = self.packages(tree)
        for package in packages:
            deb = self.folder / package.file
            if not _intact(deb, package):
                deb.unlink(missing_ok=True)
                raise BuildError(f"{deb} is damaged and was removed", "run the build again, it is fetched anew")
        unpack(packages, self.folder, target)
