"""`pip install .` on any Linux: initctl and the harness, without PID 1's C part and without network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest

from rootfs.python import SYSTEM

ROOT = Path(__file__).parents[2]
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "initd", "qemu")
TIMEOUT = 120


def run(*argv: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "PATH"}}
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=kept | env, cwd="/")


def pip(*arguments: str | Path, **env: str) -> None:
    done = run(SYSTEM, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, **env)
    assert done.returncode == 0, done.stderr


def place_packages(site: Path) -> None:
    """Put there what pip would: of the packages that are at hand, checked by their hashes, those of PID 1's lock."""
    for line in (ROOT / "rootfs/locks/python.txt").read_text().splitlines()[1:]:
        package = metadata.distribution(line.partition("==")[0])
        for name in {file.parts[0] for file in package.files or ()} - {"..", "bin", "__pycache__"}:
            (site / name).symlink_to(str(package.locate_file(name)))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of a fresh environment that the package was installed into."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"  # a build leaves its files in the tree it builds
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    tools = str(metadata.distribution("setuptools").locate_file(""))
    pip("wheel", "--no-index", "--no-build-isolation", "--no-deps", "-w", folder, source, PYTHONPATH=tools)
    environment = folder / "venv"
    venv.EnvBuilder(symlinks=True).create(environment)
    place_packages(Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)})))
    # Without an index pip refuses what the lock does not satisfy.
    pip("--python", environment / "bin/python", "install", "--no-index", *folder.glob("*.whl"))
    return environment / "bin"


def test_initctl_says_what_it_can(programs: Path) -> None:
    usage = run(programs / "initctl", "--help")
    assert (usage.returncode, usage.stderr) == (0, "")
    assert "--vm" in usage.stdout


def test_initctl_says_that_there_is_no_such_node(programs: Path, tmp_path: Path) -> None:
    done = run(programs / "initctl", "--vm", "nosuch", "status", XDG_RUNTIME_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "initctl: no VM named nosuch; running: none (make boot starts one)\n"


def test_the_harness_says_that_it_has_no_image(programs: Path, tmp_path: Path) -> None:
    folders = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = run(programs / "python", "-m", "qemu", "boot", **folders)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "qemu: no image is installed; give one (--kernel FILE), or use a clone\n"


def test_the_harness_says_that_it_has_no_control_plane(programs: Path, tmp_path: Path) -> None:
    folders = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = run(programs / "python", "-m", "qemu", "cluster", **folders)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "qemu: no control plane is installed\nuse a clone, which builds one\n"


def test_the_native_extension_is_not_there(programs: Path) -> None:
    done = run(programs / "python", "-c", "import initd._native")
    assert "No module named 'initd._native'" in done.stderr
