"""Debian packages: the host's mirror is found in both forms of apt's sources; the locks hold what is asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from rootfs import debian, golang
from rootfs.debian import HERE, KEYRING, TREES, Package, host_sources, read_list, read_lock
from rootfs.progress import BuildError

if TYPE_CHECKING:
    from pathlib import Path


def write(etc: Path, name: str, text: str) -> Path:
    path = etc / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return etc


def test_sources_files_of_the_hosts_release_are_turned_to_ours(tmp_path: Path) -> None:
    text = """\
# a comment
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /keys/debian.gpg

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main
"""
    assert host_sources(write(tmp_path, "sources.list.d/debian.sources", text), "bookworm") == (
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: trixie trixie-updates\nComponents: main\n"
        "Signed-By: /keys/debian.gpg\n\n"
        "Types: deb\nURIs: http://mirror.test/debian-security\nSuites: trixie-security\nComponents: main\n"
        f"Signed-By: {KEYRING}\n"
    )


def test_one_line_sources_are_read_too(tmp_path: Path) -> None:
    first = "deb [arch=amd64 signed-by=/k.gpg] http://m.test/debian bookworm main # why\n"
    text = first + "deb-src http://m.test/d bookworm main\n"
    found = host_sources(write(tmp_path, "sources.list", text), "bookworm")
    assert found == ("Types: deb\nURIs: http://m.test/debian\nSuites: trixie\nComponents: main\nSigned-By: /k.gpg\n")


def test_a_key_inside_the_file_is_kept_whole(tmp_path: Path) -> None:
    text = "Types: deb\nURIs: http://m.test/d\nSuites: trixie\nSigned-By:\n -----BEGIN\n .\n abc\n"
    assert "Signed-By: \n -----BEGIN\n .\n abc\n" in host_sources(
        write(tmp_path, "sources.list.d/x.sources", text), "trixie"
    )


@pytest.mark.parametrize(
    "text",
    [
        "deb http://other.test/tool stable main\n",
        "deb http://other.test/tool bookworm-backports main\n",
        "# deb http://m.test/debian bookworm main\n",
        "",
    ],
)
def test_other_archives_are_no_mirror(tmp_path: Path, text: str) -> None:
    with pytest.raises(BuildError, match="names no Debian mirror for bookworm"):
        host_sources(write(tmp_path, "sources.list", text), "bookworm")


def test_a_disabled_source_is_no_mirror(tmp_path: Path) -> None:
    text = "Enabled: no\nTypes: deb\nURIs: http://m.test/debian\nSuites: bookworm\n"
    with pytest.raises(BuildError):
        host_sources(write(tmp_path, "sources.list.d/x.sources", text), "bookworm")


def test_a_package_file_is_named_as_apt_names_it() -> None:
    package = Package("zlib1g", "1:1.3+really-1", "0", "pool/main/z/zlib/zlib1g_1.3+really-1_amd64.deb")
    assert package.file == "zlib1g_1%3a1.3+really-1_amd64.deb"


@pytest.mark.parametrize("tree", TREES)
def test_the_lock_holds_what_is_asked_for(tree: str) -> None:
    lock = read_lock(tree)
    assert {package.name for package in lock} >= set(read_list(HERE / f"packages/{tree}.txt"))
    assert all(re.fullmatch("[0-9a-f]{64}", package.sha256) for package in lock)
    assert len({package.name for package in lock}) == len(lock)


def test_both_trees_have_the_same_kernel_headers_and_libc() -> None:
    versions = [{p.name: p.version for p in read_lock(tree)} for tree in TREES]
    shared = versions[0].keys() & versions[1].keys()
    assert "libc6" in shared
    assert {name for name in shared if versions[0][name] != versions[1][name]} == set()


@pytest.mark.parametrize(("wanted", "locks"), [("python", ["python"]), ("host-python", ["host-python"])])
def test_every_python_package_is_pinned_with_hashes(wanted: str, locks: list[str]) -> None:
    names = {re.split("[<>=]", line)[0] for line in read_list(HERE / f"packages/{wanted}.txt") if line[0] != "-"}
    for lock in locks:
        lines = read_list(HERE / f"locks/{lock}.txt")
        assert {line.split("==")[0] for line in lines} >= names
        assert all(re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", line) for line in lines)


def test_no_lock_names_a_mirror() -> None:
    for path in (HERE / "locks").iterdir():
        assert "://" not in path.read_text(), path.name


def test_staging_modules_have_the_version_that_kubernetes_has() -> None:
    text = (HERE / "go/kubernetes/go.mod").read_text()
    versions = set(re.findall(r"^\tk8s\.io/\S+ => k8s\.io/\S+ (\S+)$", text, re.MULTILINE))
    assert versions == {golang.KUBERNETES.replace("v1.", "v0.", 1)}


def test_the_kubelet_is_linked_with_its_version() -> None:
    (kubelet,) = (spec for spec in golang.BUILDS if spec.name == "kubelet")
    flags = " ".join(kubelet.arguments())
    assert f"version.gitVersion={golang.KUBERNETES} " in flags
    assert "-mod=readonly" in flags
    assert debian.RELEASE == "trixie"
