"""Makes a clone ready on Debian 12 or 13: `python3 rootfs/host.py`, as root or as a user with sudo.

Installs the Debian packages that are missing, puts hash-checked Python packages and initd._native into the cache, and
makes .venv, which only points at them: a second clone is ready in seconds. Uses nothing but the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(CLONE)  # the folder of this script holds modules named like anything
    if sys.version_info < (3, 11):  # noqa: UP036 what the other files assume, nobody has checked yet
        sys.exit(f"error: Python 3.11 or later is needed, this is {sys.version.split()[0]}; use Debian 12 or 13")

# ruff: noqa: E402 the path had to be set first
from rootfs import python
from rootfs.cache import Cache, key, run
from rootfs.debian import read_list
from rootfs.progress import BuildError, Progress

INITCTL = """\
#!{python}
import sys

from initd.client.initctl import main

sys.exit(main())
"""


def _missing(names: list[str]) -> list[str]:
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\\n", *names]
    # It ends with an error when one is unknown, and still lists the others.
    shown = subprocess.run(query, check=False, capture_output=True, text=True).stdout
    installed = {line.split()[1] for line in shown.splitlines() if line.startswith("ii ")}
    return [name for name in names if name not in installed]


def install_packages(progress: Progress) -> None:
    """Install what packages/host.txt names and dpkg does not have. Raises BuildError."""
    if not shutil.which("dpkg-query"):
        raise BuildError("this is not Debian: dpkg-query is missing", "use Debian 12 or 13")
    missing = _missing(read_list(CLONE / "rootfs/packages/host.txt"))
    if not missing:
        return
    by_hand = f"run as root: apt-get update && apt-get install {' '.join(missing)}"
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if sudo and not shutil.which("sudo"):
        raise BuildError(f"{len(missing)} Debian packages are missing and there is no sudo", by_hand)
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "--yes", "--no-install-recommends", *missing]
    with progress.step(
        "packages", f"{len(missing)} Debian packages, as {', '.join(missing[:4])}", 5 + 3 * len(missing)
    ):
        if list(Path("/var/lib/apt/lists").glob("*_Packages*")):
            try:
                run(install, hint=by_hand)
            except BuildError:
                pass  # lists that are out of date name files that are gone: fetch them and try once more
            else:
                return
        run([*apt, "update"], hint="check the network and /etc/apt")
        run(install, hint=by_hand)


def make_venv(cache: Cache) -> None:
    """Make .venv: this Python, the cached packages, the clone itself, and initctl."""
    site = python.host_site(cache)
    folder = CLONE / ".venv"
    executable = folder / "bin/python"
    pth = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)})) / "initd.pth"
    wanted = f"{CLONE}\n{site}\n"
    initctl = folder / "bin/initctl"
    if executable.exists() and initctl.exists() and pth.exists() and pth.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    pth.write_text(wanted)
    initctl.write_text(INITCTL.format(python=executable))
    initctl.chmod(0o755)


def link_native(cache: Cache) -> None:
    """Build initd._native for this Python into the cache and link it into the package."""
    source = CLONE / "native"
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))

    def build(target: Path) -> None:
        argv = [str(CLONE / ".venv/bin/python"), str(source / "build.py"), "extension", "--output", str(target)]
        run(argv, hint="look at the compiler's message")

    name = key(source, suffix, sys.version)
    built = cache.entry("native-host", name, "initd's C part for this machine's Python", 5, build) / f"_native{suffix}"
    link = CLONE / f"initd/_native{suffix}"
    if not link.is_symlink() or link.readlink() != built:
        link.unlink(missing_ok=True)
        link.symlink_to(built)


def main() -> int:
    """Do it all; 1 with a line that says what to do when it cannot be done."""
    system = Path(python.SYSTEM)
    if system.exists() and Path(sys.executable) != system:
        # Another Python first in PATH may lack pip and headers, and would make other artefacts.
        os.execv(system, [str(system), __file__])  # noqa: S606 no shell is meant
    progress = Progress()
    try:
        install_packages(progress)
        cache = Cache(progress)
        make_venv(cache)
        link_native(cache)
    except BuildError as error:
        progress.error(error)
        return 1
    except KeyboardInterrupt:
        progress.note("stopped; what was finished is kept")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
